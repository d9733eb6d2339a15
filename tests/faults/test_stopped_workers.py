"""A worker that stands still (SIGSTOP) is lost; when it goes on, it judges its own past first and gives back what it holds."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.workload import Answer
from tests.faults.rig import EightStreams

STOP_S = 10.0


async def stop(victim: str, phase: str, each: int, undisturbed: list[Answer], log_dir: Path, at_least_s: float) -> None:
    async with Cluster.running(prefill=each, decode=each, log_dir=log_dir) as cluster:
        eight = EightStreams(cluster)
        await getattr(eight, phase)(cluster[victim])
        cluster[victim].stop()
        stopped_for = asyncio.create_task(asyncio.sleep(at_least_s))
        assert await eight.answers() == undisturbed
        await stopped_for
        cluster[victim].resume()
        await cluster.at_rest()
        figures = await cluster.figures()
        assert figures.value("worker_losses_total") == 1
        # It is back, and good for new work.
        assert await cluster.service.fleet.wait_ready(30, 2 * each)
        assert await EightStreams(cluster).answers() == undisturbed
        await cluster.at_rest()


@pytest.mark.parametrize(("victim", "phase"), [("prefill-0", "pushing"), ("decode-0", "decoding")])
async def test_streams_outlive_a_worker_that_stops(
    victim: str, phase: str, undisturbed: list[Answer], tmp_path: Path
) -> None:
    await stop(victim, phase, 1, undisturbed, tmp_path, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("each", [2, 1], ids=["two-of-each", "one-of-each"])
@pytest.mark.parametrize(
    ("victim", "phase"),
    [("prefill-0", "computing"), ("prefill-0", "pushing"), ("decode-0", "receiving"), ("decode-0", "decoding")],
)
async def test_streams_outlive_a_worker_that_stops_for_ten_seconds(
    victim: str, phase: str, each: int, undisturbed: list[Answer], tmp_path: Path
) -> None:
    await stop(victim, phase, each, undisturbed, tmp_path, STOP_S)
