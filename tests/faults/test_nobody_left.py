"""When nobody is left to serve: requests wait, then fail by name; whoever comes back serves."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.cluster.cluster import Cluster
from tests.cluster.workload import Answer
from tests.faults.rig import EightStreams


async def test_answers_wait_while_no_worker_is_there_and_go_on_when_one_comes(
    undisturbed: list[Answer], tmp_path: Path
) -> None:
    async with Cluster.running(log_dir=tmp_path) as cluster:
        eight = EightStreams(cluster)
        await eight.decoding(cluster["decode-0"])
        await asyncio.gather(cluster.kill("prefill-0"), cluster.kill("decode-0"))
        assert eight.num_running > 0
        await cluster.replace("decode-0")
        assert await eight.answers() == undisturbed
        await cluster.at_rest()


async def test_without_any_worker_a_request_fails_when_its_time_in_the_queue_is_over(tmp_path: Path) -> None:
    body = {"prompt": [5, 6, 7], "max_tokens": 4}
    async with Cluster.running(decode=0, log_dir=tmp_path, settings={"router.queue_timeout_s": 0.5}) as cluster:
        assert (await cluster.client.get("/health")).status_code == 200
        await cluster.kill("prefill-0")
        response = await cluster.client.post("/v1/completions", json=body)
        assert response.status_code == 503
        error = response.json()["error"]
        assert error["type"] == "service_unavailable_error"
        assert "0.5 s" in error["message"] and "0 are connected" in error["message"]
        assert (await cluster.client.get("/health")).status_code == 503
        await cluster.replace("prefill-0")
        assert (await cluster.client.get("/health", params={"wait_s": 30})).status_code == 200
        assert (await cluster.client.post("/v1/completions", json=body)).status_code == 200
        await cluster.at_rest()


async def test_a_stream_that_has_lost_too_many_workers_ends_with_an_error_event(tmp_path: Path) -> None:
    async with Cluster.running(log_dir=tmp_path, settings={"router.max_losses": 1}) as cluster:
        eight = EightStreams(cluster)
        await eight.decoding(cluster["decode-0"])
        await cluster.kill("decode-0")
        await asyncio.gather(*(stream.finished() for stream in eight.streams))
        errors = [stream.error for stream in eight.streams if stream.error is not None]
        assert errors
        for error in errors:
            assert (error["code"], error["type"]) == (500, "server_error")
            assert "the limit is 1" in error["message"]
        await cluster.at_rest()
