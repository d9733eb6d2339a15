"""One worker in this process, with a scripted router over real sessions."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from rtp_llm._native import _engine
from rtp_llm.engine import NativeEngine
from rtp_llm.errors import EngineError
from rtp_llm.wire.v1 import router_pb2 as pb
from rtp_llm.worker.worker import LOAD_DELAY_S
from tests.worker.tiny import VOCAB, ScriptedRouter, idle, tiny_config, tiny_engine, tiny_worker

ALONE, SENDER, RECEIVER = 3, 1, 2
PROMPT = [t % VOCAB for t in range(3, 40)]


async def test_a_request_alone_streams_its_tokens_and_leaves_nothing() -> None:
    async with tiny_worker("prefill") as worker:
        router = ScriptedRouter()
        end = await router.connect(worker.key, worker.address)
        assert end.hello.pool == "prefill"
        assert end.hello.peer_address == worker.address
        await router.until(lambda: end.load is not None and end.load.blocks_free > 0)
        blocks_free = end.load.blocks_free
        end.submit(router.key(1), PROMPT, 12, logprobs=2)
        tokens = await router.finished(router.key(1))
        assert len(tokens) == 12
        first = router.outputs[router.key(1)][0]
        assert first.logprob < 0
        assert len(first.top_logprobs) == 2
        await idle(worker)
        await router.until(lambda: end.load.running == 0 and end.load.blocks_free == blocks_free)
        await router.close()


async def test_a_workers_log_says_which_request_a_key_belongs_to(caplog: pytest.LogCaptureFixture) -> None:
    async with tiny_worker("prefill") as worker:
        router = ScriptedRouter()
        end = await router.connect(worker.key, worker.address)
        with caplog.at_level(logging.DEBUG, "rtp_llm.worker"):
            end.submit(router.key(1), PROMPT, 1)
            await router.finished(router.key(1))
        assert f"request 't' is placed here as {router.key(1)}" in caplog.messages
        await router.close()


async def test_a_request_gives_the_same_tokens_in_company() -> None:
    async with tiny_worker("prefill") as worker:
        router = ScriptedRouter()
        end = await router.connect(worker.key, worker.address)
        end.submit(router.key(1), PROMPT)
        alone = await router.finished(router.key(1))
        for request in range(2, 12):
            end.submit(router.key(request), PROMPT[request % 2 :])
        for request in range(2, 12, 2):
            assert await router.finished(router.key(request)) == alone
        await router.close()


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "error", "param", "text"),
    [
        ([], 12, "InvalidRequestError", "prompt", "prompt"),
        ([5, VOCAB], 12, "InvalidRequestError", "prompt", str(VOCAB)),
        ([1] * 600, 12, "PromptTooLongError", "prompt", "600"),
        ([1] * 100, 500, "PromptTooLongError", "max_tokens", "500 need 64 KV blocks"),
    ],
)
async def test_a_bad_request_fails_by_name_and_disturbs_nobody(
    prompt: list[int], max_tokens: int, error: str, param: str, text: str
) -> None:
    async with tiny_worker("prefill", engine=tiny_engine(tiny_config(), num_kv_blocks=40)) as worker:
        router = ScriptedRouter()
        end = await router.connect(worker.key, worker.address)
        end.submit(router.key(1), PROMPT, 30)
        end.submit(router.key(2), prompt, max_tokens)
        await router.until(lambda: router.kinds("failed"))
        (failed,) = router.kinds("failed")
        assert (failed.type, failed.param) == (error, param)
        assert text in failed.message
        assert len(await router.finished(router.key(1))) == 30
        await router.close()


async def test_a_load_follows_a_refused_submit_though_it_is_the_same_again() -> None:
    async with tiny_worker("prefill") as worker:
        router = ScriptedRouter()
        end = await router.connect(worker.key, worker.address)
        await router.until(lambda: end.load is not None and end.load.blocks_free > 0)
        before, end.load = end.load, None
        end.submit(router.key(1), [5, VOCAB])
        await router.until(lambda: router.kinds("failed"))
        await router.until(lambda: end.load is not None)
        assert end.load == before
        await router.close()


async def test_a_router_that_watches_the_cache_hears_of_each_block_that_enters_and_leaves() -> None:
    engine = tiny_engine(tiny_config(), num_kv_blocks=40)
    async with tiny_worker("prefill", engine=engine) as worker:
        watching, other = ScriptedRouter(), ScriptedRouter(epoch=78)
        end = await watching.connect(worker.key, worker.address)
        await other.connect(worker.key, worker.address)
        assert end.session.send(pb.RouterMessage(watch_cache=pb.WatchCache()))
        await watching.until(lambda: watching.kinds("cache_snapshot"))
        assert [(each.number, each.hashes) for each in watching.kinds("cache_snapshot")] == [(0, b"")]

        def known() -> list[bytes]:
            cached: list[bytes] = []
            for message in watching.kinds("cache_events"):
                for start in range(0, len(message.events), 17):
                    kind, hash = message.events[start], message.events[start + 1 : start + 17]
                    cached.append(hash) if kind == 1 else cached.remove(hash)
            return sorted(cached)

        end.submit(watching.key(1), PROMPT, 12)
        answer = await watching.finished(watching.key(1))
        hashes = engine.block_hashes(PROMPT + answer[:-1])  # the last token's KV is never stored
        await watching.until(lambda: known() == sorted(hashes))
        for request in range(2, 12):  # more than the pool holds
            end.submit(watching.key(request), [request, *PROMPT], 12)
            await watching.finished(watching.key(request))
        await watching.until(lambda: known() == sorted(_split(engine.cache_snapshot()[1])))
        assert not set(hashes) & set(known())
        firsts = [each.first for each in watching.kinds("cache_events")]
        sizes = [len(each.events) // 17 for each in watching.kinds("cache_events")]
        assert firsts == [1 + sum(sizes[:place]) for place in range(len(sizes))]
        assert not other.kinds("cache_snapshot") and not other.kinds("cache_events")
        await watching.close()
        await other.close()


def _split(hashes: bytes) -> list[bytes]:
    return [hashes[start : start + 16] for start in range(0, len(hashes), 16)]


async def test_a_cancelled_request_ends_and_its_blocks_are_free() -> None:
    async with tiny_worker("prefill") as worker:
        router = ScriptedRouter()
        end = await router.connect(worker.key, worker.address)
        end.submit(router.key(1), PROMPT, 400)
        await router.until(lambda: len(router.tokens(router.key(1))) > 3)
        end.cancel(router.key(1))
        await idle(worker)
        assert len(router.tokens(router.key(1))) < 400
        await router.close()


async def test_a_lower_attempt_is_fenced() -> None:
    async with tiny_worker("prefill") as worker:
        router = ScriptedRouter()
        end = await router.connect(worker.key, worker.address)
        end.submit(router.key(1, attempt=2), PROMPT)
        await router.finished(router.key(1, attempt=2))
        end.submit(router.key(1, attempt=1), PROMPT)
        await router.until(lambda: router.kinds("fenced"))
        assert router.kinds("fenced")[0].key.attempt == 1
        await router.close()


async def test_a_full_queue_answers_busy() -> None:
    config = tiny_config(worker__max_queued_tokens=50, engine__max_num_batched_tokens=8)
    async with tiny_worker("prefill", config) as worker:
        router = ScriptedRouter()
        end = await router.connect(worker.key, worker.address)
        for request in range(1, 9):
            end.submit(router.key(request), [request] * 400, 1)
        await router.until(lambda: router.kinds("busy"))
        assert router.kinds("busy")[0].limit == 50
        await router.until(lambda: len(router.outputs) + len(router.kinds("busy")) == 8)
        await router.close()


async def test_an_attach_replays_what_was_sent_into_nowhere() -> None:
    async with tiny_worker("prefill") as worker:
        router = ScriptedRouter()
        end = await router.connect(worker.key, worker.address)
        end.submit(router.key(1), PROMPT, 20)
        tokens = await router.finished(router.key(1))
        router.outputs.clear()
        end.attach((router.key(1), 5, ALONE), (router.key(9), 0, ALONE))
        assert await router.finished(router.key(1)) == tokens[5:]
        await router.until(lambda: router.kinds("fenced"))
        assert router.kinds("fenced")[0].key.request == 9  # never heard of
        await router.close()


async def test_sequences_of_a_router_that_is_gone_end_after_the_grace() -> None:
    config = tiny_config(handover__router_expiry_s=0.5)
    engine = tiny_engine(config)
    async with tiny_worker("prefill", config, engine) as worker:
        engine.pause()  # else they may have ended by themselves
        router = ScriptedRouter()
        end = await router.connect(worker.key, worker.address)
        end.submit(router.key(1), PROMPT, 470)
        while worker.is_idle():  # noqa: ASYNC110 - nothing is said of it
            await asyncio.sleep(0.01)
        await router.close()
        assert not worker.is_idle()
        await idle(worker)


async def test_a_draining_worker_finishes_what_it_has_and_leaves() -> None:
    async with tiny_worker("prefill") as worker:
        router = ScriptedRouter()
        end = await router.connect(worker.key, worker.address)
        end.submit(router.key(1), PROMPT, 100)
        await router.until(lambda: router.tokens(router.key(1)))
        drained = asyncio.ensure_future(worker.drain())
        await router.until(lambda: router.kinds("draining"))
        end.submit(router.key(2), PROMPT)  # after this router has acknowledged
        await router.until(lambda: router.kinds("busy"))
        assert len(await router.finished(router.key(1))) == 100
        assert await asyncio.wait_for(drained, 10) is True
        await router.close()


async def test_a_drain_without_end_is_given_up() -> None:
    async with tiny_worker("prefill") as worker:
        router = ScriptedRouter()
        end = await router.connect(worker.key, worker.address)
        for number in range(1, 13):  # the pool holds one: they last for seconds
            end.submit(router.key(number), PROMPT, 450)
        await router.until(lambda: router.tokens(router.key(1)))
        assert await worker.drain(timeout_s=0.01) is False
        with pytest.raises(EngineError):
            worker.check_idle()
        await router.close()


async def test_metrics_and_figures_show_the_work() -> None:
    async with tiny_worker("prefill") as worker:
        router = ScriptedRouter()
        end = await router.connect(worker.key, worker.address)
        end.submit(router.key(1), PROMPT, 12)
        await router.finished(router.key(1))
        lines = (await end.session.metrics()).splitlines()
        assert f"rtp_llm_prompt_tokens_computed_total {len(PROMPT):.1f}" in lines
        assert "rtp_llm_decode_tokens_computed_total 11.0" in lines
        figures = worker.autoscaling_figures()
        assert (figures.prompt_tokens_computed, figures.decode_tokens_computed) == (len(PROMPT), 11)
        assert (figures.running, figures.waiting, figures.queued_tokens, figures.kv_tokens) == (0, 0, 0, 0)
        worker.check_health()
        await router.close()


async def test_a_worker_that_fails_is_lost_at_once_and_says_why() -> None:
    async with tiny_worker("prefill") as worker:
        router = ScriptedRouter()
        end = await router.connect(worker.key, worker.address)
        end.submit(router.key(1), PROMPT, 400)
        await router.until(lambda: router.tokens(router.key(1)))
        worker.fault("block 812 out of range, pool has 640")
        await router.until(lambda: "lost" in end.lives)
        await asyncio.wait_for(worker.failed(), 1)
        with pytest.raises(EngineError, match="block 812"):
            worker.check_health()
        assert await worker.drain() is False
        await router.close()


async def test_a_step_that_hangs_is_a_fault_and_its_thread_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(**{"engine.step_timeout_s": 5.0, "handover.heartbeat_s": 0.02})
    engine = tiny_engine(config)
    stopped: list[NativeEngine] = []

    def load(each: NativeEngine) -> Any:
        found = each.native.load()
        names = [name for name in dir(found) if not name.startswith("_")]
        return SimpleNamespace(**{name: getattr(found, name) for name in names} | {"step_running_s": running_s})

    running_s = 4.9
    async with tiny_worker("prefill", config, engine) as worker:
        monkeypatch.setattr(NativeEngine, "load", load)
        await asyncio.sleep(0.1)
        worker.check_health()
        running_s = 5.1
        await asyncio.wait_for(worker.failed(), 10)
        with pytest.raises(EngineError, match=r"step has run for 5 s, engine.step_timeout_s is 5"):
            worker.check_health()
        assert worker.must_be_killed
        monkeypatch.setattr(NativeEngine, "stop", lambda each: stopped.append(each))
        await worker.stop()
        assert stopped == []
    monkeypatch.undo()
    engine.stop()
    await worker._transfer.stop()


async def test_a_message_after_the_stop_is_no_reason_to_look_at_the_engine_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with tiny_worker("prefill") as worker:
        pass
    looks: list[NativeEngine] = []
    monkeypatch.setattr(NativeEngine, "load", lambda engine: looks.append(engine))
    worker.router_said(77, pb.RouterMessage())
    await asyncio.sleep(3 * LOAD_DELAY_S)
    assert looks == []


def test_an_engine_of_another_block_size_says_what_differs() -> None:
    config = tiny_config()
    here, there = tiny_engine(config), tiny_engine(config, block_tokens=16)
    assert (
        _engine.describe_difference(here.layout_json, there.layout_json) == "groups[0].block_tokens: 8 here, 16 there"
    )
