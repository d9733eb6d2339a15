"""Router and workers that look to each other like ones of the protocol's version before: all works, but for what is new."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from rtp_llm.wire.versions import SPOKEN
from tests.cluster.cluster import Cluster
from tests.cluster.workload import Answer
from tests.faults.rig import EightStreams
from tests.faults.test_prompts_that_kill import BODY as KILLER
from tests.faults.test_prompts_that_kill import blamed
from tests.wire.old_protocol import OldProtocolProxy


async def test_a_fleet_of_two_versions_answers_as_one_of_a_single_version(
    undisturbed: list[Answer], tmp_path: Path
) -> None:
    """Prefill and decode, clients that leave, and a prompt that ends workers."""
    module = "tests.faults.killable_worker"
    async with Cluster.running(
        prefill=2, decode=2, log_dir=tmp_path, worker_module=module, proxied=True, proxy=OldProtocolProxy
    ) as cluster:
        assert {each.session.protocol for each in cluster.service.fleet.live()} == {SPOKEN.newest - 1}
        assert await EightStreams(cluster).answers() == undisturbed
        figures = await cluster.figures()
        assert figures.value("transfers_total", outcome="committed_received") > 0
        assert figures.value("phase_seconds_count", phase="handover") > 0
        assert figures.value("phase_seconds_count", phase="wire") == 0  # what the version before doesn't say

        leavers = EightStreams(cluster)
        await leavers.decoding(cluster["decode-0"])
        await asyncio.gather(*(stream.leave() for stream in leavers.streams))
        await cluster.at_rest()

        eight = EightStreams(cluster)
        await cluster.until(lambda: any(stream.tokens for stream in eight.streams))
        killer: asyncio.Future[Any] = asyncio.ensure_future(cluster.client.post("/v1/completions", json=KILLER))
        assert await eight.answers() == undisturbed
        blamed(await killer, "2 workers were lost while they ran the first steps of this request")
        assert sum(not worker.is_running for worker in cluster.workers) == 2
        await cluster.at_rest()
