"""A TCP connection that breaks while both ends live: nobody is lost, nothing is retried, no token is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.workload import Answer
from tests.faults.rig import EightStreams

BREAKS = 3


@pytest.mark.parametrize("worker", ["prefill-0", "decode-0"])
async def test_a_broken_session_between_router_and_worker_loses_nothing(
    worker: str, undisturbed: list[Answer], tmp_path: Path
) -> None:
    async with Cluster.running(log_dir=tmp_path, proxied=True) as cluster:
        eight = EightStreams(cluster)
        for number in range(1, BREAKS + 1):
            await cluster.until(some_have(eight, 15 * number))
            assert eight.num_running > 0
            cluster.break_router_session(worker)
        assert await eight.answers() == undisturbed
        await cluster.at_rest()
        await nobody_was_lost(cluster)


async def test_a_broken_session_between_peers_delays_and_loses_nothing(
    undisturbed: list[Answer], tmp_path: Path
) -> None:
    async with Cluster.running(log_dir=tmp_path, proxied=True) as cluster:
        eight = EightStreams(cluster)
        for number in range(1, BREAKS + 1):
            await cluster.until_figures(
                cluster["decode-0"],
                lambda figures, n=number: figures.value("transfers_total", outcome="committed_received") >= n,
            )
            cluster.break_peer_sessions("decode-0")
        assert await eight.answers() == undisturbed
        await cluster.at_rest()
        await nobody_was_lost(cluster)


def some_have(eight: EightStreams, tokens: int) -> Callable[[], bool]:
    return lambda: any(len(stream.tokens) >= tokens for stream in eight.streams)


async def nobody_was_lost(cluster: Cluster) -> None:
    figures = await cluster.figures()
    assert figures.value("worker_losses_total") == 0
    assert figures.value("retries_total", cause="lost") == 0
