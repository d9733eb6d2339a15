"""docs/deployment.md's commands on two hosts: the same answers as from one engine, whatever happens to the decode host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import httpx
import pytest

from rtp_llm.config import Pool
from tests.cluster.figures import Figures
from tests.cluster.streams import AnswerStream
from tests.cluster.workload import Answer, Body, Undivided, bodies
from tests.multihost.conftest import URL, Cluster
from tests.multihost.site import Host, left_of
from tests.serve.deployment import wait_for

pytestmark = pytest.mark.multihost

FOUR = bodies(4, seed=11, prompt_tokens=(100, 400, 700), max_tokens=(200, 240))
BEGUN_TOKENS = 10
CUT_S = 8.0
BEGIN_TIMEOUT_S = 120
HTTP_TIMEOUT_S = 120
REST_TIMEOUT_S = 60
BACK_TIMEOUT_S = 300


@pytest.fixture(scope="module")
def undisturbed() -> list[Answer]:
    with Undivided.engine() as engine:
        return engine.answers(FOUR)


class Running:
    """Streams side by side."""

    def __init__(self, client: httpx.AsyncClient, todo: Sequence[Body]) -> None:
        self._changed = asyncio.Event()
        self.streams = [AnswerStream(body, self._changed.set).start(client) for body in todo]

    @classmethod
    @asynccontextmanager
    async def all(cls, todo: Sequence[Body]) -> AsyncIterator[Running]:
        """In the block a stream has begun, and none has ended."""
        async with httpx.AsyncClient(base_url=URL, timeout=HTTP_TIMEOUT_S, trust_env=False) as client:
            running = cls(client, todo)
            await asyncio.wait_for(running._begun(), BEGIN_TIMEOUT_S)
            assert not any(stream.ended for stream in running.streams)
            yield running

    async def _begun(self) -> None:
        while not any(len(stream.tokens) >= BEGUN_TOKENS for stream in self.streams):
            assert not (errors := [stream.error for stream in self.streams if stream.error]), errors
            await self._changed.wait()
            self._changed.clear()

    async def answers(self) -> list[Answer]:
        return [Answer.of(stream) for stream in await asyncio.gather(*(s.finished() for s in self.streams))]


def figures() -> Figures:
    response = httpx.get(f"{URL}/metrics", timeout=HTTP_TIMEOUT_S, trust_env=False)
    assert response.status_code == 200, response.text
    return Figures.parse(response.text)


def has_workers(count: int) -> bool:
    return (
        httpx.get(f"{URL}/health", params={"workers": count}, timeout=HTTP_TIMEOUT_S, trust_env=False).status_code
        == 200
    )


def at_rest() -> bool:
    found = figures()
    return not found.router_not_at_rest() and not found.not_at_rest()


def replicas(host: Host) -> set[str]:
    """Deployments that have a process there."""
    titles = host.processes().values()
    names = {"router", *Pool}
    return {name for name in names if any(text.startswith(f"ray::ServeReplica:rtp-llm:{name}") for text in titles)}


async def test_answers_over_two_hosts_are_those_of_one_engine_and_kv_goes_over_tcp(
    cluster: Cluster, undisturbed: list[Answer]
) -> None:
    assert (replicas(cluster.head), replicas(cluster.worker)) == ({"router", Pool.PREFILL}, {Pool.DECODE})
    async with Running.all(FOUR) as running:
        assert await running.answers() == undisturbed
    found = figures()
    for direction in ("sent", "received"):
        over_tcp = found.value("transfer_bytes_total", direction=direction, transport="tcp")
        assert 0 < over_tcp == found.value("transfer_bytes_total", direction=direction)
    await asyncio.to_thread(wait_for, at_rest, REST_TIMEOUT_S)


async def test_streams_go_on_where_the_decode_host_is_cut_off_and_comes_back(
    cluster: Cluster, undisturbed: list[Answer]
) -> None:
    async with Running.all(FOUR) as running:
        cluster.worker.cut()
        try:
            await asyncio.sleep(CUT_S)  # how long it lasts is what is tried
        finally:
            cluster.worker.join()
        assert await running.answers() == undisturbed
    await asyncio.to_thread(wait_for, lambda: has_workers(2), REST_TIMEOUT_S)
    await asyncio.to_thread(wait_for, at_rest, REST_TIMEOUT_S)


async def test_streams_go_on_where_the_decode_host_is_killed_and_it_takes_part_again_once_it_is_back(
    cluster: Cluster, undisturbed: list[Answer]
) -> None:
    async with Running.all(FOUR) as running:
        cluster.worker.kill()
        assert await running.answers() == undisturbed
    async with Running.all(FOUR) as running:
        assert await running.answers() == undisturbed
    cluster.start_worker_again()
    await asyncio.to_thread(wait_for, lambda: has_workers(2), BACK_TIMEOUT_S)
    assert replicas(cluster.worker) == {Pool.DECODE}
    received = figures().value("transfer_bytes_total", direction="received")
    async with Running.all(FOUR) as running:
        assert await running.answers() == undisturbed
    assert figures().value("transfer_bytes_total", direction="received") > received


def test_the_documented_end_leaves_no_process_of_ray_on_any_host(cluster: Cluster) -> None:
    def of_ray() -> list[int]:
        return [
            pid
            for host in (cluster.head, cluster.worker)
            for pid, text in host.processes().items()
            if "ray" in text or "haproxy" in text
        ]

    before = of_ray()
    assert before
    cluster.stop()
    assert left_of(before) == [] and of_ray() == []
