"""Clients that go away in the middle: their blocks are free at once, the others' answers are untouched."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.workload import Answer, Body, Undivided, bodies
from tests.faults.rig import EightStreams

FREE_WITHIN_S = 2.0
CONCURRENCY = 16


@pytest.mark.alone
@pytest.mark.parametrize("phase", ["computing", "decoding"])
async def test_blocks_of_clients_that_left_are_free_within_two_seconds(
    phase: str, undisturbed: list[Answer], tmp_path: Path
) -> None:
    async with Cluster.running(log_dir=tmp_path) as cluster:
        eight = EightStreams(cluster)
        await getattr(eight, phase)(cluster["prefill-0" if phase == "computing" else "decode-0"])
        left = [eight.streams[i] for i in range(8) if i % 2]
        await asyncio.gather(*(stream.leave() for stream in left))
        stayed = [await stream.finished() for stream in eight.streams if stream not in left]
        assert [Answer.of(stream) for stream in stayed] == undisturbed[::2]

        eight = EightStreams(cluster)
        await getattr(eight, phase)(cluster["prefill-0" if phase == "computing" else "decode-0"])
        await asyncio.gather(*(stream.leave() for stream in eight.streams))
        await cluster.at_rest(FREE_WITHIN_S)


async def test_of_two_hundred_requests_a_fifth_leaves_and_nothing_is_left_over(tmp_path: Path) -> None:
    await many_of_whom_a_fifth_leaves(200, tmp_path)


@pytest.mark.slow
async def test_of_two_thousand_requests_a_fifth_leaves_and_nothing_is_left_over(tmp_path: Path) -> None:
    await many_of_whom_a_fifth_leaves(2000, tmp_path)


async def many_of_whom_a_fifth_leaves(count: int, log_dir: Path) -> None:
    kinds = bodies(20, seed=11, prompt_tokens=(5, 40, 100, 200), max_tokens=(6, 12, 24))
    with Undivided.engine() as engine:
        wanted = engine.answers(kinds)
    draw = random.Random(3)
    leavers = set(draw.sample(range(count), count // 5))
    gate = asyncio.Semaphore(CONCURRENCY)

    async def one(cluster: Cluster, number: int) -> None:
        body: Body = kinds[number % len(kinds)]
        async with gate:
            stream = cluster.stream(body)
            if number in leavers:
                # From before the first token to after the last but one.
                tokens = draw.randrange(body["max_tokens"] - 1)
                await cluster.until(lambda: len(stream.tokens) >= tokens or stream.ended)
                await stream.leave()
            else:
                assert Answer.of(await stream.finished()) == wanted[number % len(kinds)]

    async with Cluster.running(log_dir=log_dir) as cluster:
        await asyncio.gather(*(one(cluster, number) for number in range(count)))
        await cluster.at_rest()
        figures = await cluster.figures()
        assert figures.value("worker_losses_total") == 0
