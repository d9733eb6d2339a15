"""New weights in a deployment: two routers agree, and workers that start afterwards serve them, too."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rtp_llm.config import DEMO_MODEL
from tests.model.files import with_layers_exchanged
from tests.serve.deployment import Deployment, Metrics, wait_for
from tests.serve.streams import Streams, answers

pytestmark = pytest.mark.slow
ADMIN = {"Authorization": "Bearer the-admins"}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_layers_exchanged(Path(DEMO_MODEL), tmp_path_factory.mktemp("models") / "other")


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    key = tmp_path_factory.mktemp("keys") / "admin"
    key.write_text("the-admins")
    found = Deployment("--http.admin-key-file", str(key), "--router.replicas", "2")
    found.wait_workers(2)
    yield found
    assert found.stop() == 0, "\n".join(found.lines)


def post(deployed: Deployment, route: str, **body: Any) -> dict[str, Any]:
    response = httpx.post(deployed.url + route, json=body, headers=ADMIN, timeout=120)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def status(deployed: Deployment) -> dict[str, Any]:
    """Of one of the routers: a connection of its own each time, which HAProxy deals out."""
    answer: dict[str, Any] = httpx.get(f"{deployed.url}/is_paused", headers=ADMIN).json()
    return answer


def all_routers_say(deployed: Deployment, number: int) -> bool:
    return all(status(deployed)["number"] == number for _ in range(8))


def scrape(deployed: Deployment) -> Metrics:
    return Metrics(httpx.get(f"{deployed.url}/metrics", headers=ADMIN).text)


def bodies() -> list[dict[str, Any]]:
    return [
        {
            "prompt": [7 + number, 8, 9] * 20,
            "max_tokens": 120,
            "ignore_eos": True,
            "temperature": float(number % 2),
            "seed": number,
        }
        for number in range(8)
    ]


async def test_weights_are_updated_under_load_and_whoever_starts_later_serves_them_too(
    deployed: Deployment, other: Path
) -> None:
    old = await answers(deployed.url, bodies())
    async with Streams(deployed.url, bodies()) as before:
        await before.reached(3)
        updating = asyncio.ensure_future(
            asyncio.to_thread(post, deployed, "/update_weights", path=str(other), mode="wait")
        )
        async with Streams(deployed.url, bodies()) as during:
            assert await before.finished() == old
            done = await updating
            got = await during.finished()
    assert len(done["workers"]) == 2 and done["lost"] == []
    new = await answers(deployed.url, bodies())
    assert all(answer in (one, two) for answer, one, two in zip(got, old, new, strict=True))
    assert all(one != two for one, two in zip(old, new, strict=True))
    number = status(deployed)["number"]
    await asyncio.to_thread(wait_for, lambda: all_routers_say(deployed, number))

    for pool in ("decode", "prefill"):  # neither comes back with the configuration's weights
        [victim] = deployed.replicas(pool)
        async with Streams(deployed.url, bodies()) as streams:
            await streams.reached(5)
            os.kill(victim, signal.SIGKILL)
            assert await streams.finished() == new
        await asyncio.to_thread(wait_for, lambda pool=pool, victim=victim: victim not in deployed.replicas(pool))
        await asyncio.to_thread(deployed.wait_workers, 2)
    handed_over = scrape(deployed).total("rtp_llm_transfers_total", outcome="committed_received")
    assert await answers(deployed.url, bodies()) == new
    assert scrape(deployed).total("rtp_llm_transfers_total", outcome="committed_received") == handed_over + 8

    # A router that starts later knows it.
    [victim, *_] = deployed.replicas("router")
    os.kill(victim, signal.SIGKILL)
    await asyncio.to_thread(wait_for, lambda: len({*deployed.replicas("router")} - {victim}) == 2, 60)
    await asyncio.to_thread(wait_for, lambda: all_routers_say(deployed, number), 60)


async def test_a_worker_that_starts_in_a_pause_is_paused_and_goes_on_with_the_others(deployed: Deployment) -> None:
    await asyncio.to_thread(wait_for, deployed.is_healthy)
    expected = await answers(deployed.url, bodies())
    number = (await asyncio.to_thread(post, deployed, "/pause")) and status(deployed)["number"]
    await asyncio.to_thread(wait_for, lambda: all_routers_say(deployed, number))
    [victim] = deployed.replicas("decode")
    os.kill(victim, signal.SIGKILL)
    await asyncio.to_thread(wait_for, lambda: deployed.replicas("decode") not in ([], [victim]), 60)
    await asyncio.to_thread(deployed.wait_workers, 2)
    async with Streams(deployed.url, bodies()) as streams:
        steps = scrape(deployed).total("rtp_llm_engine_steps_total")
        await asyncio.to_thread(
            wait_for, lambda: scrape(deployed).total("rtp_llm_requests_waiting") == len(streams.streams)
        )
        assert scrape(deployed).total("rtp_llm_engine_steps_total") == steps
        await asyncio.to_thread(post, deployed, "/resume")
        assert await streams.finished() == expected
