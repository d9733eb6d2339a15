"""What an administrator asks of the workers, through one router: workers of a tiny model, in this process."""

from __future__ import annotations

from contextlib import AsyncExitStack
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from rtp_llm.config import Pool
from rtp_llm.errors import UnavailableError
from rtp_llm.router import pool_control
from rtp_llm.router.pool_control import PoolControl
from rtp_llm.wire.credentials import NO_CREDENTIALS
from rtp_llm.worker.worker import Worker
from tests.worker.tiny import ScriptedRouter, idle, tiny_worker

PROMPT = [n % 60 for n in range(64)]


def control_of(*workers: tuple[str, Worker], dead: str = "") -> PoolControl:
    """By pool. `dead`: the id of one more that was met, and can't be reached any more."""
    met = [(pool, each.key.id, each.address) for pool, each in workers]
    met += [("decode", dead, "127.0.0.1:1")] if dead else []
    fleet: Any = SimpleNamespace(
        credentials=NO_CREDENTIALS,
        met=lambda: [
            SimpleNamespace(member=SimpleNamespace(id=id, address=address), hello=SimpleNamespace(pool=pool))
            for pool, id, address in met
        ],
    )
    return PoolControl(fleet, pause_timeout_s=1)


async def test_after_a_reset_no_prompt_finds_what_was_cached_and_what_runs_goes_on() -> None:
    router = ScriptedRouter()
    async with AsyncExitStack() as stack:
        workers = [(pool, await stack.enter_async_context(tiny_worker(pool))) for pool in ("prefill", "decode")]
        stack.push_async_callback(router.close)
        control = control_of(*workers)

        numbers = count(1)

        async def cached(worker: Worker) -> int:
            key = router.key(next(numbers))
            router.ends[worker.key.id].submit(key, PROMPT, 4)
            await router.finished(key)
            return router.outputs[key][0].num_cached_tokens

        for _, worker in workers:
            await router.connect(worker.key, worker.address)
            assert await cached(worker) == 0 < await cached(worker)
        [prefill, decode] = [worker for _, worker in workers]
        running = router.key(0)
        router.ends[decode.key.id].submit(running, PROMPT, 256)
        await router.until(lambda: router.tokens(running))
        ids = sorted(each.key.id for each in (prefill, decode))
        assert await control.reset_prefix_cache([Pool.DECODE]) == {"status": "ok", "workers": [decode.key.id]}
        assert await cached(decode) == 0 < await cached(prefill)
        done = await control.reset_prefix_cache(list(Pool))
        assert sorted(done["workers"]) == ids and await cached(prefill) == 0
        assert len(await router.finished(running)) == 256
        alone = router.key(next(numbers))
        router.ends[prefill.key.id].submit(alone, PROMPT, 256)
        assert await router.finished(alone) == router.tokens(running)
        for worker in (prefill, decode):
            await idle(worker)


async def test_who_does_not_answer_a_reset_is_named_and_the_others_have_done_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool_control, "RESET_TIMEOUT_S", 0.5)
    router = ScriptedRouter()
    async with tiny_worker("decode") as worker:
        end = await router.connect(worker.key, worker.address)
        for number, expected in ((1, 0), (2, 56), (3, 0)):
            if number == 3:
                with pytest.raises(UnavailableError, match="1 of 2 prefix caches may not be reset: worker gone-0"):
                    await control_of(("decode", worker), dead="gone-0").reset_prefix_cache(list(Pool))
            key = router.key(number)
            end.submit(key, PROMPT, 2)
            await router.finished(key)
            assert router.outputs[key][0].num_cached_tokens == expected
        await router.close()


async def test_a_reset_without_a_worker_says_so() -> None:
    with pytest.raises(UnavailableError, match="no worker of prefill is connected"):
        await control_of().reset_prefix_cache([Pool.PREFILL])
