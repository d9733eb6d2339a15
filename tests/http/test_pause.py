"""Pause, resume and other weights, asked over HTTP of routers before worker processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.config import DEMO_MODEL, Pool
from rtp_llm.llm import LLM
from rtp_llm.router.service import Service
from rtp_llm.sampling_params import SamplingParams
from tests.cluster.cluster import Cluster
from tests.cluster.streams import AnswerStream
from tests.cluster.workload import BACKEND, BLOCK_TOKENS, Answer, Body, Undivided, bodies
from tests.model.files import with_layers_exchanged

ADMIN = {"Authorization": "Bearer the-admins"}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_layers_exchanged(Path(DEMO_MODEL), tmp_path_factory.mktemp("models") / "other")


@contextlib.asynccontextmanager
async def cluster(tmp_path: Path, **workers: Any) -> AsyncIterator[Cluster]:
    key = tmp_path / "admin.key"
    key.write_text("the-admins")
    settings = {"http.admin_key_file": str(key), "model.served_name": "demo", "model.max_model_len": 1024}
    async with Cluster.running(log_dir=tmp_path, settings=settings, **workers) as running:
        running.client.headers.update(ADMIN)  # /metrics is the administrators', too
        yield running


async def post(cluster: Cluster, route: str, status: int = 200, **body: Any) -> dict[str, Any]:
    response = await cluster.client.post(route, json=body)
    assert response.status_code == status, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def paused(cluster: Cluster) -> bool:
    return bool((await cluster.client.get("/is_paused")).json()["is_paused"])


def decoding(cluster: Cluster) -> int:
    return sum(each.load.running for each in cluster.service.fleet.live() if each.key.id.startswith("decode"))


async def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Asked again and again: nobody tells of what a router has heard."""

    async def wait() -> None:
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    await asyncio.wait_for(wait(), timeout_s)


def undivided(model: str | Path, asked: list[Body]) -> list[Answer]:
    with LLM(model=str(model), device=BACKEND, block_size=BLOCK_TOKENS, kv_cache_memory_bytes=64 << 20) as llm:
        return Undivided(llm).answers(asked)


async def answers(streams: list[AnswerStream]) -> list[Answer]:
    return [Answer.of(await stream.finished()) for stream in streams]


async def test_new_weights_under_load_fail_nothing_and_each_answer_is_wholly_of_the_old_or_of_the_new(
    tmp_path: Path, other: Path
) -> None:
    asked = bodies(24, seed=1, prompt_tokens=(20, 90, 200), max_tokens=(40, 60))
    old, new = undivided(DEMO_MODEL, asked), undivided(other, asked)
    assert all(one != two for one, two in zip(old, new, strict=True))
    async with cluster(tmp_path, prefill=2, decode=2) as running:
        before = [running.stream(body) for body in asked[:8]]
        await running.until(lambda: all(stream.tokens for stream in before))
        updating = asyncio.ensure_future(post(running, "/update_weights", path=str(other), mode="wait"))
        during = []
        for body in asked[8:16]:
            during.append(running.stream(body))
            await asyncio.sleep(0)
        done = await updating
        assert done["workers"] == ["decode-0", "decode-1", "prefill-0", "prefill-1"] and done["lost"] == []
        after = [running.stream(body) for body in asked[16:]]
        assert await answers(before) == old[:8]
        for place, answer in enumerate(await answers(during), 8):
            assert answer in (old[place], new[place])
        assert await answers(after) == new[16:]
        assert not await paused(running)
        figures = await running.figures()
        assert figures.value("worker_losses_total") == 0
        assert figures.value("transfers_total", outcome="committed_received") >= 8  # on new weights too
        # The same prompts again: the caches hold nothing of the old weights, and the router looks for nothing of them.
        again = [running.stream(body) for body in asked[:8]]
        assert await answers(again) == new[:8]
        await running.at_rest()


async def test_what_is_kept_across_an_update_goes_on_with_the_new_weights(tmp_path: Path, other: Path) -> None:
    count = 240 if BACKEND == "cpu" else 900  # a GPU is faster than the pause
    asked = [
        body for body in bodies(12, seed=2, prompt_tokens=(30, 70), max_tokens=(count,)) if not body["temperature"]
    ]
    async with cluster(tmp_path) as running:
        streams = [running.stream(body) for body in asked]
        await running.until(lambda: all(len(stream.tokens) > 3 for stream in streams))
        await post(running, "/pause", mode="keep")
        at_least = [len(stream.tokens) for stream in streams]
        assert not any(stream.ended for stream in streams)
        for number in range(4):  # more often than an answer may lose its worker
            await post(running, "/update_weights", path=str(other) if number % 2 == 0 else DEMO_MODEL)
            assert await paused(running)
        await post(running, "/update_weights", path=str(other))
        await post(running, "/resume")
        got = await answers(streams)
        figures = await running.figures()
        assert figures.value("retries_total", cause="preempted") >= len(asked)
        assert figures.value("retries_total", cause="lost") == 0
        await running.at_rest()
    with (
        LLM(model=DEMO_MODEL, device=BACKEND, block_size=BLOCK_TOKENS, kv_cache_memory_bytes=64 << 20) as old,
        LLM(model=str(other), device=BACKEND, block_size=BLOCK_TOKENS, kv_cache_memory_bytes=64 << 20) as new,
    ):
        for body, least, answer in zip(asked, at_least, got, strict=True):
            before = _ids(old, body["prompt"], body["max_tokens"])
            texts = [token for token, _ in answer.tokens]
            assert any(
                texts
                == _texts(new, [*before[:at], *_ids(new, [*body["prompt"], *before[:at]], body["max_tokens"] - at)])
                for at in range(least, len(before))
            )


def _ids(llm: LLM, prompt: list[int], count: int) -> list[int]:
    sampling = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
    return llm.generate({"prompt_token_ids": prompt}, sampling)[0].outputs[0].token_ids


def _texts(llm: LLM, ids: list[int]) -> list[str]:
    return [llm.get_tokenizer().token_text(token) for token in ids]


async def test_kept_answers_stand_still_in_a_pause_and_end_as_if_there_had_been_none(tmp_path: Path) -> None:
    asked = bodies(6, seed=3, prompt_tokens=(30, 150), max_tokens=(50,))
    expected = undivided(DEMO_MODEL, asked)
    async with cluster(tmp_path) as running:
        streams = [running.stream(body) for body in asked[:5]]
        await running.until(lambda: any(stream.tokens for stream in streams))
        await post(running, "/pause", mode="keep")
        steps = [(await worker.figures()).value("engine_steps_total") for worker in running.workers]
        streams.append(running.stream(asked[5]))
        leaves = running.stream(asked[0])
        await asyncio.sleep(1.0)  # what must not happen in a pause has time to
        assert [(await worker.figures()).value("engine_steps_total") for worker in running.workers] == steps
        await leaves.leave()
        await post(running, "/resume")
        assert await answers(streams) == expected
        await running.at_rest()


async def test_aborted_answers_end_with_what_they_have_and_what_waits_is_answered_afterwards(tmp_path: Path) -> None:
    asked = bodies(5, seed=4, prompt_tokens=(30,), max_tokens=(300,))
    expected = undivided(DEMO_MODEL, asked[4:])
    async with cluster(tmp_path) as running:
        streams = [running.stream(body) for body in asked[:4]]
        whole = asyncio.ensure_future(running.client.post("/v1/completions", json=asked[0]))
        await running.until(lambda: all(len(stream.tokens) > 2 for stream in streams) and decoding(running) == 5)
        assert await post(running, "/pause", mode="abort") == {
            "status": "ok",
            "workers": ["decode-0", "prefill-0"],
            "lost": [],
        }
        for stream in streams:
            answer = Answer.of(await stream.finished())
            assert answer.finish_reason == "abort" and 2 < len(answer.tokens) < 300
        response = await whole
        assert response.status_code == 200 and response.json()["choices"][0]["finish_reason"] == "abort"
        waits = running.stream(asked[4])
        await post(running, "/resume")
        assert await answers([waits]) == expected
        await running.at_rest()


async def test_one_pool_may_be_paused_and_the_other_serves(tmp_path: Path) -> None:
    asked = bodies(4, seed=5, prompt_tokens=(60,), max_tokens=(20,))
    expected = undivided(DEMO_MODEL, asked)
    async with cluster(tmp_path) as running:
        for pool in ("prefill", "decode"):
            await post(running, "/pause", pool=pool)
            assert await answers([running.stream(body) for body in asked]) == expected
            await post(running, "/resume", pool=pool)
        await running.at_rest()


async def test_nothing_is_handed_over_between_old_and_new_weights(tmp_path: Path, other: Path) -> None:
    asked = bodies(6, seed=6, prompt_tokens=(60,), max_tokens=(20,))
    old, new = undivided(DEMO_MODEL, asked), undivided(other, asked)
    async with cluster(tmp_path) as running:
        assert await answers([running.stream(body) for body in asked[:2]]) == old[:2]
        assert await handovers(running) == 2
        await post(running, "/update_weights", path=str(other), mode="wait", pool="decode")
        for answer, place in zip(await answers([running.stream(body) for body in asked[2:4]]), (2, 3), strict=True):
            assert answer in (old[place], new[place])
        assert await handovers(running) == 2
        await post(running, "/update_weights", path=str(other), mode="wait", pool="prefill")
        for _ in range(100):  # sessions begin anew: until router and sender have theirs, a worker alone answers
            assert await answers([running.stream(body) for body in asked[4:]]) == new[4:]
            if await handovers(running) > 2:
                break
        assert await handovers(running) > 2  # the second pool took the version of the first
        await running.at_rest()


async def handovers(running: Cluster) -> float:
    return (await running["decode-0"].figures()).value("transfers_total", outcome="committed_received")


async def test_wrong_requests_change_nothing(tmp_path: Path, other: Path) -> None:
    asked = bodies(2, seed=7, prompt_tokens=(40,), max_tokens=(10,))
    expected = undivided(DEMO_MODEL, asked)
    short = shutil.copytree(other, tmp_path / "short")
    os.truncate(short / "model.safetensors", 1000)
    async with cluster(tmp_path) as running:
        for path, words in ((short, "truncated"), (tmp_path / "nowhere", "No such file")):
            said = await post(running, "/update_weights", 400, path=str(path), mode="wait")
            assert words in said["error"]["message"] and said["error"]["param"] == "path"
        for body, param in (
            ({"path": str(other)}, "mode"),
            ({"path": "relative", "mode": "wait"}, "path"),
            ({"mode": "wait"}, "path"),
            ({"path": str(other), "mode": "now"}, "mode"),
            ({"path": str(other), "mode": "wait", "pool": "both"}, "pool"),
            ({"path": str(other), "mode": "wait", "version": 3}, "version"),
        ):
            assert (await post(running, "/update_weights", 400, **body))["error"]["param"] == param
        nobody = {"Authorization": "Bearer somebody"}
        for route in ("/pause", "/resume", "/update_weights"):
            assert (await running.client.post(route, headers=nobody)).status_code == 401
        assert (await running.client.get("/is_paused", headers=nobody)).status_code == 401
        status = (await running.client.get("/is_paused")).json()
        as_configured = {"paused": None, "weights": None, "version": 0}
        assert status == {
            "is_paused": False,
            "number": 0,
            "pools": {"prefill": as_configured, "decode": as_configured},
        }
        assert await answers([running.stream(body) for body in asked]) == expected
        await running.at_rest()


async def test_a_pause_that_takes_too_long_is_given_up_everywhere(tmp_path: Path) -> None:
    [body] = bodies(1, seed=8, prompt_tokens=(20,), max_tokens=(900,))
    async with cluster(tmp_path) as running:
        stream = running.stream(body)
        await running.until(lambda: len(stream.tokens) > 2)
        said = await post(running, "/pause", 504, mode="wait", timeout_s=0.2)
        assert "has not ended within 0.2 s" in said["error"]["message"]
        assert not await paused(running)
        quick = running.stream(body | {"max_tokens": 5})
        await quick.finished()
        assert quick.error is None
        await stream.leave()
        await running.at_rest()


@contextlib.asynccontextmanager
async def second_router(running: Cluster) -> AsyncIterator[Service]:
    service = Service(running.config, running._membership)
    service.start()
    try:
        assert await service.fleet.wait_ready(30, len(running.workers))
        yield service
    finally:
        await service.close()


async def test_two_routers_agree_and_one_operation_runs_at_a_time(tmp_path: Path, other: Path) -> None:
    [body] = bodies(1, seed=9, prompt_tokens=(20,), max_tokens=(900,))
    async with cluster(tmp_path) as running, second_router(running) as second:
        stream = running.stream(body)
        await running.until(lambda: len(stream.tokens) > 2)
        pausing = asyncio.ensure_future(post(running, "/pause", mode="wait"))
        await until(lambda: all(worker.pause for worker in second.fleet.live()))
        assert second.fleet.is_paused  # the other router has heard, and places nothing
        said = await post(running, "/update_weights", 409, path=str(other), mode="wait")  # of the same router
        assert "under way" in said["error"]["message"]
        with pytest.raises(Exception, match="under way"):  # of the other
            await second.pools.resume(list(Pool))
        assert not stream.ended and not pausing.done()
        await stream.leave()
        await pausing
        await second.pools.resume(list(Pool))
        await running.until_figures(running["decode-0"], lambda figures: True)
        await until(lambda: not running.service.fleet.is_paused)
        quick = running.stream(body | {"max_tokens": 5})
        await quick.finished()
        assert quick.error is None
        await running.at_rest()


@pytest.mark.parametrize("victim", ["decode-0", "prefill-0"])
async def test_a_worker_that_dies_in_the_middle_is_named_and_the_others_go_on(
    tmp_path: Path, other: Path, victim: str
) -> None:
    asked = bodies(4, seed=10, prompt_tokens=(40,), max_tokens=(20,))
    new = undivided(other, asked)
    async with cluster(tmp_path, prefill=2, decode=2) as running:
        [body] = bodies(1, seed=9, prompt_tokens=(20,), max_tokens=(900,))
        blocks = running.stream(body)
        await running.until(lambda: len(blocks.tokens) > 2)
        updating = asyncio.ensure_future(post(running, "/update_weights", path=str(other), mode="wait"))
        await until(lambda: all(worker.pause for worker in running.service.fleet.live()))
        await running.kill(victim)
        await blocks.leave()
        done = await updating
        assert done["lost"] == [victim] and len(done["workers"]) == 3
        assert await answers([running.stream(body) for body in asked]) == new
        await running.at_rest()


async def test_a_client_that_leaves_leaves_the_operation_alone(tmp_path: Path, other: Path) -> None:
    async with cluster(tmp_path) as running:
        asking = asyncio.ensure_future(post(running, "/update_weights", path=str(other), mode="wait"))
        await until(lambda: running.service.pools._running is not None)
        asking.cancel()
        await running.service.pools._running
        assert running.service.fleet.state.decode.weights == str(other) and not await paused(running)
        await running.at_rest()
