"""Requests that schemathesis makes up from /openapi.json, right and wrong ones: the server is never at fault, and answers what
the document says."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Iterator
from typing import Any, TypeAlias

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode

from rtp_llm.router import ingress
from tests.described import Described
from tests.router.spoken import Spoken

CASES = 12  # of each operation, of each kind
Seen: TypeAlias = "collections.Counter[tuple[str, int]]"

NEEDS_WORKERS = ("/health", "/ready", "/ping", "/pause", "/resume", "/update_weights", "/reset_prefix_cache")
PLAIN = settings(
    max_examples=CASES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)

pytestmark = pytest.mark.slow


def described_by(url: str) -> Described:
    return Described(httpx.get(f"{url}/openapi.json").json())


def operations(url: str) -> Iterator[Any]:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    for found in schema.get_all_operations():
        yield found.ok()


def run(url: str) -> Seen:
    """How often each kind of case had each status."""
    seen: Seen = collections.Counter()
    described = described_by(url)
    for operation in operations(url):
        for mode in GenerationMode:
            try_out(operation, mode, seen, described)
    return seen


def try_out(operation: Any, mode: GenerationMode, seen: Seen, described: Described) -> None:
    strategy = operation.as_strategy(generation_mode=mode)

    @PLAIN
    @given(case=strategy)
    def one(case: Any) -> None:
        answer = case.call(timeout=30)
        seen[mode.value, answer.status_code] += 1
        expected = answer.status_code == 503 and operation.label.endswith(NEEDS_WORKERS)
        assert answer.status_code < 500 or expected, f"{operation.label}: {answer.status_code} {answer.text[:500]}"
        [kind] = answer.headers["content-type"]
        same = httpx.Response(answer.status_code, headers={"content-type": kind}, content=answer.content)
        described.check(operation.method.upper(), operation.path, same)

    try:
        one()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE, operation.label  # nothing of it can be wrong


@pytest.mark.timeout(900)
async def test_nothing_that_the_document_makes_think_of_is_the_servers_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress, "MAX_HEALTH_WAIT_S", 0.01)
    async with (
        Spoken.running(**{"router.max_choices": 4, "router.upload_timeout_s": 2.0}) as spoken,
        spoken.listening() as url,
    ):
        seen = await asyncio.to_thread(run, url)
    print(dict(seen))
    assert seen["positive", 200] > 100 and seen["negative", 400] > 100
