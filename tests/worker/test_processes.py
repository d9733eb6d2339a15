"""Real worker processes: drain by signal, crash, stop, a broken connection."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rtp_llm.wire.key import WorkerKey
from tests.wire.proxy import Proxy
from tests.worker.processes import WorkerProcess, worker_process, write_model
from tests.worker.tiny import VOCAB, RouterEnd, ScriptedRouter

PROMPT = [(7 * t + 1) % VOCAB for t in range(45)]
LENGTH = 600  # long enough to be hit in the middle
ALONE, SENDER, RECEIVER = 3, 1, 2


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path)


@dataclass
class Pair:
    prefill: WorkerProcess
    decode: WorkerProcess
    router: ScriptedRouter
    s: RouterEnd
    r: RouterEnd

    @property
    def receiver(self) -> tuple[WorkerKey, str]:
        return self.decode.key, self.decode.address


@contextlib.asynccontextmanager
async def pair(model: Path) -> AsyncIterator[Pair]:
    blocks = {"engine__num_kv_blocks": 256}
    async with (
        worker_process("prefill", model, **blocks) as prefill,
        worker_process("decode", model, **blocks) as decode,
    ):
        router = ScriptedRouter()
        s = await router.connect(prefill.key, prefill.address)
        r = await router.connect(decode.key, decode.address)
        try:
            yield Pair(prefill, decode, router, s, r)
        finally:
            await router.close()


AT_REST = {
    'rtp_llm_kv_blocks{state="referenced"}': 0,
    'rtp_llm_kv_blocks{state="granted"}': 0,
    'rtp_llm_kv_blocks{state="quarantined"}': 0,
    'rtp_llm_sequences{state="running"}': 0,
    'rtp_llm_sequences{state="waiting"}': 0,
    'rtp_llm_transfer_outstanding{direction="sent"}': 0,
    'rtp_llm_transfer_outstanding{direction="received"}': 0,
    "rtp_llm_idle_check_failures_total": 0,
}


async def at_rest(end: RouterEnd, timeout_s: float = 20.0) -> None:
    """Until the worker's own figures say that nothing runs or is in flight and no block is held."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        samples = dict(line.rsplit(" ", 1) for line in (await end.session.metrics()).splitlines() if line[0] != "#")
        left = {name: samples[name] for name in AT_REST if float(samples[name]) != AT_REST[name]}
        if not left:
            return
        assert asyncio.get_running_loop().time() < deadline, left
        await asyncio.sleep(0.1)


async def undisturbed(end: RouterEnd, router: ScriptedRouter) -> list[int]:
    k = router.key(1000)
    end.submit(k, PROMPT, LENGTH, temperature=0.9, seed=3)
    return await router.finished(k, 60)


async def test_sigterm_drains_and_the_process_leaves_with_zero(model: Path) -> None:
    async with worker_process("prefill", model, engine__num_kv_blocks=256) as worker:
        router = ScriptedRouter()
        end = await router.connect(worker.key, worker.address)
        end.submit(router.key(1), PROMPT, LENGTH)
        await router.until(lambda: router.tokens(router.key(1)))
        worker.signal(signal.SIGTERM)
        assert len(await router.finished(router.key(1), 60)) == LENGTH
        assert await worker.exit_status() == 0
        await router.until(lambda: "lost" in end.lives)
        await router.close()


async def test_a_connection_that_breaks_loses_no_token(model: Path) -> None:
    async with worker_process("prefill", model, engine__num_kv_blocks=256) as worker:
        proxy = Proxy(worker.address)
        await proxy.start()
        router = ScriptedRouter()
        end = await router.connect(worker.key, proxy.address)
        want = await undisturbed(end, router)
        k = router.key(1)
        end.submit(k, PROMPT, LENGTH, temperature=0.9, seed=3)
        for breaks in range(1, 4):
            await router.until(lambda n=breaks: len(router.tokens(k)) > 20 * n)
            proxy.break_connections()
            await router.until(lambda n=breaks: end.lives.count("resumed") == n)
            have = router.outputs[k]
            following = next(position for position in range(LENGTH + 1) if position not in have)
            end.attach((k, following, ALONE))
        assert await router.finished(k, 60) == want
        assert "lost" not in end.lives
        await at_rest(end)
        await router.close()
        await proxy.close()


async def test_a_stream_outlives_its_prefill_worker(model: Path) -> None:
    async with pair(model) as p:
        want = await undisturbed(p.s, p.router)
        k = p.router.key(1)
        p.s.submit(k, PROMPT, LENGTH, receiver=p.receiver, temperature=0.9, seed=3)
        await p.router.until(lambda: len(p.router.tokens(k)) > 5)
        p.prefill.signal(signal.SIGKILL)
        await p.router.until(lambda: "lost" in p.s.lives)
        assert await p.router.finished(k, 60) == want
        await at_rest(p.r)


async def test_after_a_decode_worker_died_another_goes_on_with_the_same_tokens(model: Path) -> None:
    async with pair(model) as p:
        want = await undisturbed(p.s, p.router)
        k = p.router.key(1)
        p.s.submit(k, PROMPT, LENGTH, receiver=p.receiver, temperature=0.9, seed=3)
        await p.router.until(lambda: len(p.router.tokens(k)) > 5)
        p.decode.signal(signal.SIGKILL)
        await p.router.until(lambda: "lost" in p.r.lives)
        so_far = p.router.tokens(k)
        retry = p.router.key(1, attempt=1)
        p.s.submit(retry, PROMPT, LENGTH, output=so_far, temperature=0.9, seed=3)
        assert so_far + await p.router.finished(retry, 60) == want
        await at_rest(p.s)


async def test_a_stopped_decode_worker_is_lost_and_clean_when_it_comes_back(model: Path) -> None:
    async with pair(model) as p:
        k = p.router.key(1)
        p.s.submit(k, PROMPT, LENGTH, receiver=p.receiver)
        await p.router.until(lambda: len(p.router.tokens(k)) > 5)
        p.decode.signal(signal.SIGSTOP)
        await p.router.until(lambda: "lost" in p.r.lives)
        so_far = p.router.tokens(k)
        retry = p.router.key(1, attempt=1)
        p.s.submit(retry, PROMPT, LENGTH, output=so_far)
        finished = so_far + await p.router.finished(retry, 60)
        p.decode.signal(signal.SIGCONT)
        await p.router.until(lambda: p.r.lives[-1] == "connected")
        p.r.cancel(k)  # its old keys die when they speak
        await at_rest(p.r)
        await at_rest(p.s)
        again = p.router.key(2)
        p.s.submit(again, PROMPT, LENGTH, receiver=p.receiver)
        assert await p.router.finished(again, 60) == finished


async def test_a_worker_that_can_not_load_its_model_says_why(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="ended with 2"):
        async with worker_process("prefill", tmp_path / "nothing"):
            pass
