"""A TCP connection that breaks while both ends live: nobody is lost, nothing is retried, no token is missing."""

from __future__ import annotations

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
        proxy = cluster.proxies(worker).for_router
        eight = EightStreams(cluster)
        forwarded = 0
        for number in range(1, BREAKS + 1):
            # The last break is repaired, and tokens have come since.
            await cluster.until(lambda f=forwarded, n=number: proxy.num_forwarded > f and some_have(eight, 15 * n))
            assert eight.num_running > 0
            forwarded = proxy.num_forwarded
            proxy.break_connections()
        assert await eight.answers() == undisturbed
        await cluster.at_rest()
        assert proxy.num_forwarded > forwarded
        await nobody_was_lost(cluster)


async def test_a_broken_session_between_peers_delays_and_loses_nothing(
    undisturbed: list[Answer], tmp_path: Path
) -> None:
    async with Cluster.running(log_dir=tmp_path, proxied=True) as cluster:
        proxy = cluster.proxies("decode-0").for_peers
        eight = EightStreams(cluster)
        forwarded = 0
        for number in range(1, BREAKS + 1):
            await cluster.until_figures(
                cluster["decode-0"],
                lambda figures, f=forwarded, n=number: (
                    proxy.num_forwarded > f and figures.value("transfers_total", outcome="committed_received") >= n
                ),
            )
            assert eight.num_running > 0
            forwarded = proxy.num_forwarded
            proxy.break_connections()
        assert await eight.answers() == undisturbed
        await cluster.at_rest()
        assert proxy.num_forwarded > forwarded
        await nobody_was_lost(cluster)


async def test_a_session_that_falls_silent_is_lost_and_its_answers_go_on_elsewhere(
    undisturbed: list[Answer], tmp_path: Path
) -> None:
    async with Cluster.running(prefill=1, decode=2, log_dir=tmp_path, proxied=True) as cluster:
        proxy = cluster.proxies("decode-0").for_router
        eight = EightStreams(cluster)
        await eight.decoding(cluster["decode-0"])
        proxy.stall()  # decode-0 lives, decodes, and nobody hears it
        assert await eight.answers() == undisturbed
        proxy.flow()
        assert await cluster.service.fleet.wait_ready(30, 3)
        await cluster.at_rest()
        figures = await cluster.figures()
        assert figures.value("worker_losses_total") == 1
        assert figures.value("retries_total", cause="lost") > 0


def some_have(eight: EightStreams, tokens: int) -> bool:
    return any(len(stream.tokens) >= tokens for stream in eight.streams)


async def nobody_was_lost(cluster: Cluster) -> None:
    figures = await cluster.figures()
    assert figures.value("worker_losses_total") == 0
    assert figures.value("retries_total") == 0
