"""What a request asks of the router itself: deadlines, a priority, a session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.cluster.cluster import WAIT_S, Cluster

pytestmark = pytest.mark.asyncio(loop_scope="module")

COMPLETION = "/v1/completions"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    # `cost` predicts, and weighs nothing: on a machine that is busy its targets are missed everywhere.
    settings: dict[str, Any] = {"model.served_name": "demo", "router.policy": '{"cost": 1e-9, "affinity": 1}'}
    log_dir = tmp_path_factory.mktemp("workers")
    async with Cluster.running(prefill=2, decode=2, log_dir=log_dir, settings=settings) as running:
        yield running
        await running.at_rest()


async def ask(cluster: Cluster, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    asked = {"prompt": "What is 23 + 58?", "temperature": 0, **body}
    return await cluster.client.post(COMPLETION, json=asked, headers=headers)


async def ask_past(cluster: Cluster, status: int, **body: Any) -> httpx.Response:
    """The first answer of another status, with a small request between two."""

    async def asked() -> httpx.Response:
        while (answer := await ask(cluster, **body)).status_code == status:
            assert (await ask(cluster, max_tokens=2)).status_code == 200
        return answer

    return await asyncio.wait_for(asked(), WAIT_S)


async def test_what_can_not_have_its_first_token_in_time_is_refused_at_once(cluster: Cluster) -> None:
    """As soon as a worker's steps have shown what they take; until then it ends at its deadline."""
    refused = await ask_past(cluster, 504, ttft_timeout_ms=0.001)
    assert refused.status_code == 429, refused.text
    assert "Retry-After" not in refused.headers  # a worker is never so fast
    assert "the first token is expected in" in refused.json()["error"]["message"]
    assert (await ask(cluster, {"X-TTFT-Timeout": "1e-6"})).status_code in (429, 504)
    assert (await ask(cluster, {"X-TTFT-Timeout": "60"}, timeout=60)).status_code == 200


async def test_a_request_ends_at_its_own_deadline(cluster: Cluster) -> None:
    # A busy machine's steps may promise no first token in time: 429.
    ended = await ask_past(cluster, 429, timeout_ms=200, max_tokens=1900, ignore_eos=True)
    assert ended.status_code == 504, ended.text
    assert "not whole after 0.2 s" in ended.json()["error"]["message"]


async def test_a_priority_changes_no_answer(cluster: Cluster) -> None:
    answers = await asyncio.gather(*(ask(cluster, priority=each, max_tokens=12) for each in (0, -7, 9)))
    assert len({answer.json()["choices"][0]["text"] for answer in answers}) == 1


@pytest.mark.parametrize("by_header", [True, False])
async def test_a_sessions_requests_find_what_it_said_before(cluster: Cluster, by_header: bool) -> None:
    sessions = [f"{by_header} {i}" for i in range(6)]

    async def turn(session: str, prompt: str) -> httpx.Response:
        headers, user = ({"X-Session-Id": session}, {}) if by_header else ({}, {"user": session})
        return await ask(cluster, headers, prompt=prompt, max_tokens=4, **user)

    first = {session: f"this is said in session {session} and nowhere else, twice. " * 3 for session in sessions}
    for session, prompt in first.items():
        assert (await turn(session, prompt)).status_code == 200
    for session, prompt in first.items():
        usage = (await turn(session, prompt + " And now?")).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] >= 32, session
