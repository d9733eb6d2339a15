"""Pools that scale themselves, on real Ray: what is waited for is a state, never a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from tests.serve.deployment import Deployment, wait_for
from tests.serve.redeploy import JOIN
from tests.serve.streams import answers

START_S = 120  # a worker on a busy machine
SHORT = {"prompt": "a b c", "max_tokens": 40, "ignore_eos": True, "temperature": 0}
QUICKLY = ["--autoscaling.window-s=2", "--autoscaling.interval-s=0.2"]
QUICKLY += [f"--{pool}.autoscaling.upscale-delay-s=0" for pool in ("prefill", "decode")]


def scaled(deployment: Deployment, name: str, *flags: str) -> Deployment:
    """An application of its own on the Ray of `deployment`."""
    joining = ["env", *(f"{key}={value}" for key, value in (JOIN | {"RAY_ADDRESS": deployment.ray_address}).items())]
    port = deployment.url.rpartition(":")[2]
    named = ["--port", port, "--served-model-name", name, "--http.route-prefix", f"/{name}"]
    return Deployment(*named, *QUICKLY, *flags, prefix=joining)


def workers(deployment: Deployment, state: str = "live") -> tuple[int, int]:
    """Of prefill and decode."""
    metrics = deployment.metrics()
    return tuple(int(metrics.total("rtp_llm_workers", pool=pool, state=state)) for pool in ("prefill", "decode"))  # type: ignore[return-value]


async def until(deployment: Deployment, *wanted: tuple[int, int]) -> list[tuple[int, int]]:
    """The numbers of workers that were seen on the way to one of `wanted`."""
    seen: list[tuple[int, int]] = []

    def reached() -> bool:
        seen.append(workers(deployment))
        return seen[-1] in wanted

    await asyncio.to_thread(wait_for, reached, START_S)
    return seen


# --- To zero


@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.slow)])
async def test_empty_pools_come_back_for_a_request_and_go_to_zero_after_it(deployment: Deployment, times: int) -> None:
    limits = [
        flag
        for pool in ("prefill", "decode")
        for flag in (f"--{pool}.autoscaling.min=0", f"--{pool}.autoscaling.max=1", f"--{pool}.autoscaling.initial=0")
    ]
    idle = [f"--{pool}.autoscaling.downscale-to-zero-delay-s=0" for pool in ("prefill", "decode")]
    expected = await answers(deployment.url, [SHORT])
    emptied = scaled(deployment, "zero", *limits, *idle)
    assert emptied.is_healthy()
    for _ in range(times):
        assert await answers(emptied.url, [SHORT]) == expected
        await until(emptied, (0, 0))
    assert emptied.metrics().total("rtp_llm_worker_losses_total") == 0
    assert emptied.stop() == 0, "\n".join(emptied.lines)


# --- Up and down


@dataclass
class Clients:
    """Each asks the same again and again, one request after the other, until `leave`; each answer is compared."""

    url: str
    body: dict[str, Any]
    expected: list[tuple[str, float]]
    asking: list[asyncio.Task[None]] = field(default_factory=list)
    staying: int = 0

    def come(self, number: int) -> None:
        self.staying += number
        first = len(self.asking)
        self.asking += [asyncio.create_task(self._ask(first + i)) for i in range(number)]

    async def leave(self, staying: int = 0) -> None:
        """All but so many, each at the end of its answer."""
        leaving, self.staying = self.asking[staying:], staying
        del self.asking[staying:]
        await asyncio.gather(*leaving)

    async def _ask(self, place: int) -> None:
        while place < self.staying:
            [found] = await answers(self.url, [self.body])
            assert found == self.expected


@contextlib.asynccontextmanager
async def clients(deployment: Deployment, reference: str, body: dict[str, Any]) -> AsyncIterator[Clients]:
    [expected] = await answers(reference, [body])
    found = Clients(deployment.url, body, expected)
    try:
        yield found
    finally:
        for task in found.asking:
            task.cancel()
        await asyncio.gather(*found.asking, return_exceptions=True)


@pytest.fixture(scope="module")
def elastic(deployment: Deployment) -> Iterator[Deployment]:
    """Up to three workers of each pool; six sequences a decode worker, of which 4.8 may be taken."""
    limits = [f"--{pool}.autoscaling.max=3" for pool in ("prefill", "decode")]
    delays = [f"--{pool}.autoscaling.downscale-delay-s=3" for pool in ("prefill", "decode")]
    targets = ["--router.ttft-target-ms=20", "--decode.engine.max-num-seqs=6", "--engine.itl-target-ms=1000"]
    targets.append("--engine.enable-prefix-caching=false")  # equal prompts are computed again
    found = scaled(deployment, "elastic", *limits, *delays, *targets)
    yield found
    assert found.stop() == 0, "\n".join(found.lines)


@pytest_asyncio.fixture
async def undisturbed(elastic: Deployment) -> AsyncIterator[None]:
    """One worker of each pool before; at the end nobody was lost."""
    await until(elastic, (1, 1))
    yield
    assert elastic.metrics().total("rtp_llm_worker_losses_total") == 0
    assert elastic.metrics().total("rtp_llm_retries_total", cause="lost") == 0


@pytest.mark.slow
async def test_prefill_follows_its_load_while_decode_stays(
    deployment: Deployment, elastic: Deployment, undisturbed: None
) -> None:
    prompts = {"prompt": [3 + i % 900 for i in range(1900)], "max_tokens": 2, "ignore_eos": True, "temperature": 0}
    async with clients(elastic, deployment.url, prompts) as load:
        load.come(12)
        seen = await until(elastic, (3, 1))
        await load.leave(staying=1)
        seen += await until(elastic, (1, 1))
        await load.leave()
    assert {decode for _, decode in seen} == {1}


@pytest.mark.slow
async def test_decode_follows_its_load_while_prefill_stays_and_drains_with_streams_running(
    deployment: Deployment, elastic: Deployment, undisturbed: None
) -> None:
    streams = {**SHORT, "max_tokens": 600}
    async with clients(elastic, deployment.url, streams) as load:
        load.come(24)
        seen = await until(elastic, (1, 3))
        await load.leave(staying=4)
        seen += await until(elastic, (1, 1))
        await load.leave()
    assert {prefill for prefill, _ in seen} == {1}
