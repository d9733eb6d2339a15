"""A prompt whose first step ends its worker: two workers at most, an error, and refused from then on. Everybody else's answers
are whole."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx

from tests.cluster.cluster import Cluster
from tests.cluster.workload import Answer
from tests.faults.killable_worker import KILLER
from tests.faults.rig import EightStreams

BODY: dict[str, Any] = {"prompt": KILLER + [7] * 900, "max_tokens": 8, "temperature": 0.0}


async def test_a_prompt_ends_two_workers_at_most_and_nobody_elses_answer(
    undisturbed: list[Answer], tmp_path: Path
) -> None:
    module = "tests.faults.killable_worker"
    async with Cluster.running(prefill=2, decode=2, log_dir=tmp_path, worker_module=module) as cluster:
        eight = EightStreams(cluster)
        await cluster.until(lambda: any(stream.tokens for stream in eight.streams))
        killer = asyncio.ensure_future(cluster.client.post("/v1/completions", json=BODY))
        assert await eight.answers() == undisturbed
        blamed(await killer, "2 workers were lost while they ran the first steps of this request")
        assert sum(not worker.is_running for worker in cluster.workers) == 2
        blamed(await cluster.client.post("/v1/completions", json=BODY), "this prompt of 903 tokens has ended workers")
        assert sum(not worker.is_running for worker in cluster.workers) == 2
        await cluster.at_rest()


def blamed(response: httpx.Response, text: str) -> None:
    assert response.status_code == 500, response.text
    assert text in response.json()["error"]["message"], response.text
