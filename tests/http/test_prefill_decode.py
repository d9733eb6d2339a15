"""Prefill here, decode there, through the router and HTTP: bit for bit what one engine answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from rtp_llm.router.placement.cost import Cost
from tests.cluster.cluster import Cluster
from tests.cluster.streams import AnswerStream
from tests.cluster.workload import Answer, Body, Undivided, bodies, bytes_per_token

FIFTY = bodies(50, seed=1, prompt_tokens=(1, 15, 16, 17, 40, 64, 129, 300), max_tokens=(2, 5, 12, 24))


@pytest.fixture(scope="module")
def undivided() -> Iterator[list[Answer]]:
    with Undivided.engine() as engine:
        yield engine.answers(FIFTY)


async def run(cluster: Cluster, todo: list[Body], concurrency: int) -> list[AnswerStream]:
    gate = asyncio.Semaphore(concurrency)

    async def one(body: Body) -> AnswerStream:
        async with gate:
            return await cluster.stream(body).finished()

    return list(await asyncio.gather(*(one(body) for body in todo)))


@pytest.mark.parametrize(("mode", "lane"), [("shm", "posix"), ("tcp", "tcp")])
async def test_fifty_prompts_at_concurrency_8_equal_one_engine_alone(
    mode: str, lane: str, undivided: list[Answer], tmp_path: Path
) -> None:
    async with Cluster.running(log_dir=tmp_path, settings={"transfer.mode": mode}) as cluster:
        streams = await run(cluster, FIFTY, 8)
        assert [Answer.of(stream) for stream in streams] == undivided
        await cluster.at_rest()

        figures = await cluster.figures()
        prompt_tokens = sum(len(body["prompt"]) for body in FIFTY)
        prefill, decode = {"pool": "prefill"}, {"pool": "decode"}
        hit = figures.value("prefix_hit_tokens_total", **decode)
        payload = (prompt_tokens - hit) * bytes_per_token()
        assert figures.value("transfer_bytes_total", direction="sent", transport=lane, **prefill) == payload
        assert figures.value("transfer_bytes_total", direction="received", transport=lane, **decode) == payload
        assert figures.value("transfer_bytes_total") == 2 * payload, "nothing over another lane or the other way"
        assert figures.value("prompt_tokens_computed_total", **decode) == 0
        assert figures.value("prompt_tokens_computed_total", **prefill) == prompt_tokens
        assert figures.value("decode_tokens_computed_total", **prefill) == 0
        assert figures.value("transfers_total", outcome="committed_received") == len(FIFTY)
        assert figures.value("retries_total") == 0
        assert figures.value("prompt_tokens_total") == prompt_tokens
        assert figures.value("output_tokens_total") == sum(body["max_tokens"] for body in FIFTY)


async def test_a_prompt_that_the_receiver_has_moves_only_what_it_lacks(tmp_path: Path) -> None:
    [body] = bodies(1, seed=2, prompt_tokens=(100,), max_tokens=(8,))
    async with Cluster.running(log_dir=tmp_path) as cluster:
        first, second = [Answer.of(await cluster.stream(body).finished()) for _ in range(2)]
        assert first == second
        figures = await cluster.figures()
        assert figures.value("prefix_hit_tokens_total", pool="decode") == 96
        assert figures.value("transfer_bytes_total", direction="sent") == (100 + 4) * bytes_per_token()
        await cluster.at_rest()


async def test_answers_placed_by_cost_are_the_same_and_it_learns_what_steps_take(
    undivided: list[Answer], tmp_path: Path
) -> None:
    async with Cluster.running(prefill=1, decode=2, log_dir=tmp_path, settings={"router.policy": "cost"}) as cluster:
        streams = await run(cluster, FIFTY, 8)
        assert [Answer.of(stream) for stream in streams] == undivided
        policy = cluster.service.dispatcher._policy
        assert isinstance(policy, Cost)
        # Of a few samples one term may be fitted as nothing; what they make of a step isn't.
        assert policy.fleet_cost.decode_s(4, 400) > 0 and policy.fleet_cost.prompt_s(64) > 0
        await cluster.at_rest()
        while any(view.sequences for view in cluster.service.fleet.snapshot.values()):  # noqa: ASYNC110 - no stream tells
            await asyncio.sleep(0.02)
