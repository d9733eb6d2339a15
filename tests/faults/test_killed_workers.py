"""kill -9 of a worker in every phase: each stream ends with the tokens of the undisturbed run, and nothing is left over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.workload import Answer, Undivided, bodies
from tests.faults.rig import EightStreams

STORM = bodies(32, seed=11, prompt_tokens=(40, 60, 80), max_tokens=(40, 48, 56))
PHASES = [("prefill-0", "computing"), ("prefill-0", "pushing"), ("decode-0", "receiving"), ("decode-0", "decoding")]


@pytest.mark.parametrize("each", [2, 1], ids=["two-of-each", "one-of-each"])
@pytest.mark.parametrize(("victim", "phase"), PHASES, ids=[f"{v.split('-')[0]}-{p}" for v, p in PHASES])
async def test_streams_outlive_a_worker_that_is_killed(
    victim: str, phase: str, each: int, undisturbed: list[Answer], tmp_path: Path
) -> None:
    async with Cluster.running(prefill=each, decode=each, log_dir=tmp_path) as cluster:
        eight = EightStreams(cluster)
        await getattr(eight, phase)(cluster[victim])
        await cluster.kill(victim)
        assert eight.num_running > 0
        assert await eight.answers() == undisturbed
        await cluster.at_rest()
        figures = await cluster.figures()
        assert figures.value("worker_losses_total") == 1
        assert figures.value("retries_total") > 0


@pytest.mark.parametrize(
    "settings", [{}, {"router.retry_burst": 4, "router.retry_rate": 50.0}], ids=["at-once", "paced"]
)
async def test_a_storm_of_retries_finishes_all(settings: dict[str, Any], tmp_path: Path) -> None:
    with Undivided.engine() as engine:
        expected = engine.answers(STORM)
    async with Cluster.running(prefill=2, decode=1, log_dir=tmp_path, settings=settings) as cluster:
        storm = EightStreams(cluster, STORM)
        await cluster.until(lambda: sum(len(each.tokens) > 1 for each in storm.streams) >= 16)
        await cluster.kill("decode-0")
        assert storm.num_running > 8
        assert await storm.answers() == expected
        await cluster.at_rest()
