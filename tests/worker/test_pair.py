"""A prefill and a decode worker in this process, a scripted router: prompts are handed over, tokens come from R."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from rtp_llm.config import Config
from rtp_llm.request import FinishReason
from rtp_llm.wire import convert
from rtp_llm.wire.credentials import Credentials
from rtp_llm.wire.key import WorkerKey
from rtp_llm.wire.v1.peer_pb2 import SenderMessage
from rtp_llm.wire.v1.router_pb2 import WorkerMessage
from rtp_llm.worker.worker import Worker
from tests.worker.tiny import (
    VOCAB,
    RouterEnd,
    ScriptedRouter,
    acknowledged,
    idle,
    tiny_config,
    tiny_engine,
    tiny_worker,
)

PROMPT = [(7 * t + 1) % VOCAB for t in range(45)]
SENDER, RECEIVER = 1, 2


@dataclass
class Pair:
    prefill: Worker
    decode: Worker
    router: ScriptedRouter
    s: RouterEnd
    r: RouterEnd

    @property
    def receiver(self) -> tuple[WorkerKey, str]:
        return self.decode.key, self.decode.address

    async def rest(self) -> None:
        """Both are idle and nothing is left over."""
        await idle(self.prefill)
        await idle(self.decode)


@contextlib.asynccontextmanager
async def pair(
    config: Config | None = None, decode_engine: Any = None, prefill_engine: Any = None
) -> AsyncIterator[Pair]:
    async with (
        tiny_worker("prefill", config, prefill_engine) as prefill,
        tiny_worker("decode", config, decode_engine) as decode,
    ):
        router = ScriptedRouter()
        s = await router.connect(prefill.key, prefill.address)
        r = await router.connect(decode.key, decode.address)
        try:
            yield Pair(prefill, decode, router, s, r)
        finally:
            await router.close()


async def alone(prompt: list[int], max_tokens: int, **sampling: Any) -> list[int]:
    async with tiny_worker("decode") as worker:
        router = ScriptedRouter()
        end = await router.connect(worker.key, worker.address)
        end.submit(router.key(1), prompt, max_tokens, **sampling)
        tokens = await router.finished(router.key(1))
        await router.close()
        return tokens


def counter(text: str, name: str) -> float:
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


async def test_a_first_handover_does_not_wait_for_a_repeated_reserve() -> None:
    async with pair(tiny_config(handover__repeat_s=1000.0, handover__reserve_wait_s=1000.0)) as two:
        key = two.router.key(1)
        two.s.submit(key, PROMPT, 6, receiver=two.receiver)
        assert len(await two.router.finished(key)) == 6
        received = await two.r.session.metrics()
        assert counter(received, "rtp_llm_decode_tokens_computed_total") == 5
        await two.rest()


async def test_a_router_hears_of_the_handover_before_its_tokens() -> None:
    """However late R's loop comes to both: the router measures the handover by it, and the tokens may be the last ones."""
    async with pair() as two:
        worker, sent = two.decode, []
        said, send = worker.sender_said, worker._routers.send

        def said_late(sender: WorkerKey, message: SenderMessage) -> None:
            said(sender, message)
            if message.HasField("commit"):
                end = time.monotonic() + 10
                while worker._engine.load().decode_tokens_computed < 5 and time.monotonic() < end:
                    time.sleep(0.001)
                worker._on_outputs()

        def noted(router_epoch: int, message: WorkerMessage) -> bool:
            sent.append(message.WhichOneof("message"))
            return send(router_epoch, message)

        worker.sender_said = said_late  # type: ignore[method-assign]
        worker._routers.send = noted  # type: ignore[method-assign]
        key = two.router.key(1)
        two.s.submit(key, PROMPT, 6, receiver=two.receiver)
        assert len(await two.router.finished(key)) == 6
        assert sent.index("committed") < sent.index("outputs")
        await two.rest()


async def test_a_prompt_is_handed_over_and_the_tokens_equal_those_of_one_worker() -> None:
    want = await alone(PROMPT, 12, temperature=0.8, seed=5)
    async with pair() as p:
        k = p.router.key(1)
        p.s.submit(k, PROMPT, 12, receiver=p.receiver, temperature=0.8, seed=5)
        assert await p.router.finished(k) == want
        await p.rest()
        sent, received = await p.s.session.metrics(), await p.r.session.metrics()
        layers, planes, heads, head_dim, float32 = 4, 2, 2, 8, 4
        payload = len(PROMPT) * layers * planes * heads * head_dim * float32
        assert counter(sent, 'rtp_llm_transfer_bytes_total{direction="sent"') == payload
        assert counter(received, 'rtp_llm_transfer_bytes_total{direction="received"') == payload
        assert counter(received, "rtp_llm_prompt_tokens_computed_total") == 0
        assert counter(sent, "rtp_llm_decode_tokens_computed_total") == 0


async def test_many_at_once_are_handed_over_and_all_equal_one_worker_alone() -> None:
    async with pair() as p:
        prompts = {request: PROMPT[request % 5 : 20 + request] for request in range(1, 17)}
        for request, prompt in prompts.items():
            p.s.submit(p.router.key(request), prompt, 9, receiver=p.receiver)
        answers = {request: await p.router.finished(p.router.key(request)) for request in prompts}
        await p.rest()
    async with tiny_worker("decode") as worker:
        router = ScriptedRouter()
        end = await router.connect(worker.key, worker.address)
        for request, prompt in prompts.items():
            end.submit(router.key(request), prompt, 9)
            assert await router.finished(router.key(request)) == answers[request]
        await router.close()


async def test_a_prompt_without_a_number_among_its_logits_fails_alone_on_both_sides() -> None:
    config, bad_token = tiny_config(), VOCAB - 1
    good = [token for token in PROMPT if token != bad_token]
    engine, decode_engine = (tiny_engine(config, nan_token=bad_token) for _ in range(2))
    async with pair(config, decode_engine, engine) as p:
        p.s.submit(p.router.key(1), good, 30, receiver=p.receiver)
        p.s.submit(p.router.key(2), [*good, bad_token, *good], 30, receiver=p.receiver)
        p.r.submit(p.router.key(3), [*good, bad_token], 30)
        for request in (2, 3):
            assert await p.router.finished(p.router.key(request)) == [-1]
            (output,) = p.router.outputs[p.router.key(request)].values()
            assert output.finish_reason is FinishReason.FAILED
        assert len(await p.router.finished(p.router.key(1))) == 30
        assert -1 not in p.router.tokens(p.router.key(1))
        await p.rest()


async def test_a_second_prompt_with_the_same_beginning_sends_only_the_rest() -> None:
    async with pair() as p:
        p.s.submit(p.router.key(1), PROMPT, 4, receiver=p.receiver)
        await p.router.finished(p.router.key(1))
        await p.rest()
        before = counter(await p.s.session.metrics(), 'rtp_llm_transfer_bytes_total{direction="sent"')
        p.s.submit(p.router.key(2), PROMPT, 4, receiver=p.receiver)
        assert await p.router.finished(p.router.key(2)) == p.router.tokens(p.router.key(1))
        await p.rest()
        after = counter(await p.s.session.metrics(), 'rtp_llm_transfer_bytes_total{direction="sent"')
        assert 0 < after - before < before / 4


async def test_a_cancel_on_both_sides_leaves_nothing() -> None:
    async with pair() as p:
        k = p.router.key(1)
        p.s.submit(k, PROMPT, 400, receiver=p.receiver)
        await p.router.until(lambda: len(p.router.tokens(k)) > 3)
        p.s.cancel(k)
        p.r.cancel(k)
        await p.rest()
        assert len(p.router.tokens(k)) < 400


async def test_r_is_asked_whether_an_attempt_is_committed() -> None:
    async with pair() as p:
        k = p.router.key(1)
        p.s.submit(k, PROMPT, 400, receiver=p.receiver)
        await p.router.until(lambda: len(p.router.tokens(k)) > 3)
        p.r.fence(k)
        p.r.fence(p.router.key(2))
        await p.router.until(lambda: p.router.kinds("committed") and p.router.kinds("fenced"))
        p.r.cancel(k)
        await p.rest()


async def test_an_attach_to_r_replays_from_the_next_position() -> None:
    async with pair() as p:
        k = p.router.key(1)
        p.s.submit(k, PROMPT, 12, receiver=p.receiver)
        tokens = await p.router.finished(k)
        p.router.outputs.clear()  # what S said of p0 may still come behind this
        p.r.attach((k, 3, RECEIVER))
        await p.router.until(lambda: len(tokens) - 1 in p.router.outputs.get(k, {}))
        replayed = p.router.outputs[k]
        assert [replayed[position].token for position in range(3, len(tokens))] == tokens[3:]
        assert 1 not in replayed and 2 not in replayed


async def test_workers_of_unequal_layout_refuse_and_the_sender_goes_on_without() -> None:
    config = tiny_config()
    async with pair(config, tiny_engine(config, block_tokens=16)) as p:
        k = p.router.key(1)
        p.s.submit(k, PROMPT, 12, receiver=p.receiver)
        await p.router.until(lambda: p.router.kinds("released"))
        assert "groups[0].block_tokens" in p.router.kinds("released")[0].reason
        assert len(p.router.tokens(k)) == 1  # p0 is never lost
        await p.rest()


async def test_what_r_could_not_join_is_not_granted(caplog: pytest.LogCaptureFixture) -> None:
    """47 tokens fit into R's limit of 48, and with the token that S samples nothing could follow: S serves it alone."""
    config = tiny_config()
    async with pair(config, tiny_engine(config, max_model_len=48)) as p:
        k, retry = p.router.key(1), p.router.key(1, attempt=1)
        p.s.submit(k, [*PROMPT, 1, 2], 12, receiver=p.receiver)
        await p.router.until(lambda: p.router.kinds("released"))
        assert "no room" in p.router.kinds("released")[0].reason and "is 48" in p.router.kinds("released")[0].reason
        p.s.submit(retry, [*PROMPT, 1, 2], 12)
        assert len(await p.router.finished(retry)) == 12
        await p.rest()
    assert "max_model_len is 512 here and 48 at worker decode-0" in caplog.text


async def test_a_sender_with_a_smaller_pool_serves_what_the_pair_can() -> None:
    config = tiny_config()
    async with pair(config, prefill_engine=tiny_engine(config, num_kv_blocks=7)) as p:
        k = p.router.key(1)
        p.s.submit(k, PROMPT, 60, receiver=p.receiver)  # the prompt takes 6 blocks, the answer 13
        assert len(await p.router.finished(k)) == 60
        p.s.submit(p.router.key(2), PROMPT, 60)
        await p.router.until(lambda: p.router.kinds("failed"))
        assert "the pool has 7" in p.router.kinds("failed")[0].message
        await p.rest()


async def test_who_sees_a_first_token_has_a_slot_for_the_second() -> None:
    """More handovers at once than R has slots, as several routers may plan: those beyond them are released before anybody has
    seen a token."""
    async with pair(tiny_config(engine__num_kv_blocks=600, handover__reserve_wait_s=0.2)) as p:
        another = ScriptedRouter(p.router.epoch + 1)
        await another.connect(p.prefill.key, p.prefill.address)
        keys = [p.router.key(number) for number in range(24)]
        for number, k in enumerate(keys):
            p.s.submit(k, PROMPT[number:] + PROMPT[:number], 400, receiver=p.receiver)

        def released() -> set[Any]:
            return {convert.key_of(message.key) for message in p.router.kinds("released")}

        # 16 where all come while the first ones run.
        await p.router.until(lambda: all(k in released() or len(p.router.tokens(k)) == 400 for k in keys), 60)
        assert released()
        assert all(message.reason.startswith("no room") for message in p.router.kinds("released"))
        assert not any(p.router.tokens(k) for k in released())
        for k in set(keys) - released():
            assert len(await p.router.finished(k, 60)) == 400
        await another.close()
        await p.rest()


async def test_a_receiver_says_how_many_slots_others_have_taken() -> None:
    async with tiny_worker("decode") as worker:
        routers = [ScriptedRouter(epoch) for epoch in (77, 78)]
        ends = [await router.connect(worker.key, worker.address) for router in routers]
        for number in range(40):  # five times its slots: they are taken until it is seen
            ends[0].submit(routers[0].key(number), PROMPT, 400)

        def slots(end: RouterEnd) -> tuple[int, int]:
            return (end.load.slots, end.load.slots_of_others) if end.load is not None else (0, 0)

        await routers[1].until(lambda: slots(ends[1])[1] >= 8)
        for number in range(40):
            ends[0].cancel(routers[0].key(number))
        for router, end in zip(routers, ends, strict=True):  # each hears its own Loads
            await router.until(lambda end=end: slots(end) == (8, 0))
        for router in routers:
            await router.close()


async def test_a_receiver_that_is_not_there_is_gone_on_without() -> None:
    async with tiny_worker("prefill") as prefill, tiny_worker("decode") as gone:
        where = (gone.key, gone.address)
        await gone.stop()
        router = ScriptedRouter()
        s = await router.connect(prefill.key, prefill.address)
        k = router.key(1)
        s.submit(k, PROMPT, 12, receiver=where)
        await router.until(lambda: router.kinds("released"))
        tokens = router.tokens(k)
        assert len(tokens) == 1
        retry = router.key(1, attempt=1)
        s.submit(retry, PROMPT, 12, output=tokens)
        assert len(await router.finished(retry)) == 11
        await idle(prefill)
        await router.close()


async def test_another_incarnation_of_the_receiver_is_no_substitute() -> None:
    async with pair() as p:
        k = p.router.key(1)
        p.s.submit(k, PROMPT, 12, receiver=(WorkerKey(p.decode.key.id, 1), p.decode.address))
        await p.router.until(lambda: p.router.kinds("released"))
        await p.rest()


async def test_a_draining_receiver_takes_no_new_grant_and_ends_what_it_runs() -> None:
    async with pair() as p:
        k = p.router.key(1)
        p.s.submit(k, PROMPT, 100, receiver=p.receiver)
        await p.router.until(lambda: len(p.router.tokens(k)) > 2)
        drained = asyncio.ensure_future(p.decode.drain())
        await acknowledged(p.decode)  # which S's Reserve may overtake
        p.s.submit(p.router.key(2), PROMPT, 10, receiver=p.receiver)
        await p.router.until(lambda: p.router.kinds("released"))
        assert len(await p.router.finished(k)) == 100
        assert await asyncio.wait_for(drained, 10) is True


async def test_workers_of_one_token_hand_over() -> None:
    config = tiny_config(worker__token="s3cret")
    async with tiny_worker("prefill", config) as prefill, tiny_worker("decode", config) as decode:
        router = ScriptedRouter(credentials=Credentials("s3cret"))
        s = await router.connect(prefill.key, prefill.address)
        await router.connect(decode.key, decode.address)
        s.submit(router.key(1), PROMPT, receiver=(decode.key, decode.address))
        assert len(await router.finished(router.key(1))) == 8
        await router.until(lambda: router.kinds("committed"))  # may come after the last token
        await router.close()


async def test_a_receiver_of_another_token_is_done_without() -> None:
    async with (
        tiny_worker("prefill") as prefill,
        tiny_worker("decode", tiny_config(worker__token="s3cret")) as decode,
    ):
        router = ScriptedRouter()
        s = await router.connect(prefill.key, prefill.address)
        s.submit(router.key(1), PROMPT, receiver=(decode.key, decode.address))
        await router.until(lambda: router.kinds("released"))
        assert "asks for worker.token" in router.kinds("released")[0].reason
        await router.close()
