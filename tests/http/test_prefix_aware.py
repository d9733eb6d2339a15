"""Requests go where their prefix lies: caches' events from worker processes to the router's index, and back in usage."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rtp_llm.prefix import BLOCK_HASH_BYTES, block_hashes
from rtp_llm.router.placement.prefix_aware import PrefixAware
from rtp_llm.router.service import Service
from tests.cluster.cluster import Cluster
from tests.cluster.workload import BLOCK_TOKENS, bytes_per_token

SETTINGS: dict[str, Any] = {"router.policy": "prefix_aware"}
PREFIX_TOKENS = 6 * BLOCK_TOKENS


def prefix(number: int) -> list[int]:
    return [10 + number * 7 + place % 5 for place in range(PREFIX_TOKENS)]


def held(service: Service, worker: str) -> set[bytes]:
    """What the router's index says that the worker's cache holds."""
    policy = service.dispatcher._policy
    assert isinstance(policy, PrefixAware)
    return split(policy._index.hashes(worker)) if worker in policy._index.caches else set()


def split(hashes: bytes) -> set[bytes]:
    return {hashes[start : start + BLOCK_HASH_BYTES] for start in range(0, len(hashes), BLOCK_HASH_BYTES)}


def hashes_of(service: Service, tokens: list[int]) -> set[bytes]:
    assert service.fleet.model_digest is not None
    return split(block_hashes(tokens, BLOCK_TOKENS, service.fleet.model_digest, ""))


async def until_known(cluster: Cluster, worker: str, tokens: list[int], service: Service | None = None) -> None:
    """The router has heard that `worker` holds them, and that nobody has anything to do."""
    service = service or cluster.service
    hashes = hashes_of(cluster.service, tokens)
    await until(
        lambda: (
            hashes <= held(service, worker) and not any(view.queued_tokens for view in service.fleet.snapshot.values())
        )
    )


async def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Asked again and again: no stream tells of cache events."""

    async def wait() -> None:
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    await asyncio.wait_for(wait(), timeout_s)


async def ask(cluster: Cluster, prompt: list[int], max_tokens: int = 4) -> int:
    """Its cached_tokens."""
    body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    response = await cluster.client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return int(response.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


async def computed(cluster: Cluster) -> dict[str, float]:
    """Prompt tokens, by worker."""
    figures = {worker.id: await worker.figures() for worker in cluster.workers if worker.is_running}
    return {id: each.value("prompt_tokens_computed_total") for id, each in figures.items()}


async def ask_one(cluster: Cluster, prompt: list[int]) -> tuple[str, int]:
    """(the worker that computed it, its cached_tokens)"""
    before = await computed(cluster)
    cached = await ask(cluster, prompt)
    after = await computed(cluster)
    [worker] = [worker for worker in after if after[worker] > before.get(worker, 0)]
    return worker, cached


async def test_a_second_request_goes_to_the_prefill_worker_that_has_its_prefix(tmp_path: Path) -> None:
    async with Cluster.running(prefill=2, decode=1, log_dir=tmp_path, settings=SETTINGS) as cluster:
        for number in range(8):
            first, cached = await ask_one(cluster, [*prefix(number), 100])
            assert first.startswith("prefill") and cached == 0
            await until_known(cluster, first, prefix(number))
            assert await ask_one(cluster, [*prefix(number), 200]) == (first, PREFIX_TOKENS)
        await cluster.at_rest()


async def test_the_receiver_that_has_the_prefix_gets_what_it_lacks_and_no_more(tmp_path: Path) -> None:
    async with Cluster.running(prefill=1, decode=2, log_dir=tmp_path, settings=SETTINGS) as cluster:
        for number in range(6):
            await ask(cluster, [*prefix(number), 100])
            await until(
                lambda number=number: any(  # type: ignore[misc]
                    hashes_of(cluster.service, prefix(number)) <= held(cluster.service, f"decode-{i}") for i in (0, 1)
                )
            )
            await cluster.at_rest()
            before = (await cluster.figures()).value("transfer_bytes_total", direction="sent")
            await ask(cluster, [*prefix(number), 200])
            after = (await cluster.figures()).value("transfer_bytes_total", direction="sent")
            assert after - before == bytes_per_token()


async def test_another_router_a_broken_session_and_a_killed_worker(tmp_path: Path) -> None:
    settings = {**SETTINGS, "handover.heartbeat_s": 0.2}
    async with Cluster.running(prefill=2, decode=1, log_dir=tmp_path, settings=settings, proxied=True) as cluster:
        worker, _ = await ask_one(cluster, [*prefix(0), 100])
        await until_known(cluster, worker, prefix(0))

        late = Service(cluster.config, cluster._membership)  # its sessions are other ones
        late.start()
        try:
            await until_known(cluster, worker, prefix(0), late)
            for number in range(1, 4):
                await ask(cluster, [*prefix(number), 100])
                cluster.proxies(worker).for_router.break_connections()
            asked = set().union(*(hashes_of(cluster.service, prefix(number)) for number in range(4)))

            def are_equal() -> bool:
                here, there = (
                    [held(each, worker.id) for worker in cluster.workers] for each in (cluster.service, late)
                )
                return here == there and asked <= set().union(*here)

            await until(are_equal)
        finally:
            await late.close()

        await cluster.kill(worker)
        await until(lambda: not held(cluster.service, worker))
        other, cached = await ask_one(cluster, [*prefix(0), 200])
        assert other != worker and cached in (0, PREFIX_TOKENS)
        await cluster.at_rest()
