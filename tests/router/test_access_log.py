"""One line a request, whatever becomes of it: docs/observability.md."""

import asyncio
import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from rtp_llm.errors import WorkerLostError
from rtp_llm.router.access import Access
from rtp_llm.router.account import MAX_ANSWERS, MAX_ERROR_CHARS, RequestAccount
from rtp_llm.router.ingress import build_ingress
from tests.router.test_ingress import CHAT, ScriptedBackend

DOCUMENTED = Path(__file__).resolve().parents[2] / "docs" / "observability.md"


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.INFO, "rtp_llm.access")
    return lambda: [json.loads(record.message) for record in caplog.records if record.name == "rtp_llm.access"]


def client_of(backend: ScriptedBackend) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app=build_ingress(lambda: backend)), base_url="http://router"
    )


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_one_line_under_the_clients_id(backend: ScriptedBackend, lines: Any, stream: bool) -> None:
    async with client_of(backend) as http:
        await http.post("/v1/chat/completions", json={**CHAT, "stream": stream}, headers={"X-Request-Id": "mine-1"})
    [line] = lines()
    assert (line["id"], line["endpoint"], line["status"]) == ("mine-1", "chat_completions", 200)
    assert line["ms"] > 0 and "error" not in line


@pytest.mark.parametrize("id", ["", "x" * 129, "a\tb", "\xfc"])
async def test_an_id_that_is_no_word_is_replaced(backend: ScriptedBackend, lines: Any, id: str) -> None:
    async with client_of(backend) as http:
        await http.post("/v1/chat/completions", json=CHAT, headers={b"x-request-id": id.encode("latin-1")})
    [line] = lines()
    assert line["id"] != id and len(line["id"]) == 32


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_is_in_the_line(backend: ScriptedBackend, lines: Any, stream: bool) -> None:
    backend.error, backend.error_after = WorkerLostError("lost thrice" + "!" * 1000), 1
    async with client_of(backend) as http:
        await http.post("/v1/chat/completions", json={**CHAT, "stream": stream})
        await http.post("/v1/chat/completions", json={**CHAT, "stream": stream, "temperature": -1})
        await http.post("/v1/chat/completions", content="{}", headers={"Content-Type": "text/plain"})
    assert [line["status"] for line in lines()] == [500, 400, 415]
    assert [line["error"][:11] for line in lines()] == ["lost thrice", "temperature", "Content-Typ"]
    assert all(len(line["error"]) <= MAX_ERROR_CHARS for line in lines())


async def test_a_client_that_leaves_is_a_line_with_499(backend: ScriptedBackend, lines: Any) -> None:
    backend.gate = asyncio.Event()
    app = build_ingress(lambda: backend)
    received = iter([{"type": "http.request", "body": json.dumps(CHAT).encode()}])

    async def receive() -> Any:
        if (message := next(received, None)) is not None:
            return message
        await backend.begins.acquire()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None: ...

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers, "query_string": b""}
    await app(scope, receive, send)
    assert [line["status"] for line in lines()] == [499]


async def test_of_many_answers_the_line_shows_some(lines: Any) -> None:
    account = RequestAccount("id", time.monotonic())
    for _ in range(MAX_ANSWERS + 3):
        account.answer()
    account.close("completions", 200)
    [line] = lines()
    assert (len(line["answers"]), line["more_answers"]) == (MAX_ANSWERS, 3)
    assert line["answers"][0] == {
        "key": "",
        "workers": [],
        "prompt_tokens": 0,
        "cached_tokens": 0,
        "tokens": 0,
        "ms": {},
        "end": "cancelled",
    }


async def test_a_line_names_the_tenant_and_no_key(backend: ScriptedBackend, lines: Any) -> None:
    backend.access = Access({"alice": "a-key"})
    async with client_of(backend) as http:
        for key in ("a-key", "b-key"):
            await http.post("/v1/chat/completions", json=CHAT, headers={"Authorization": f"Bearer {key}"})
    accepted, refused = lines()
    assert accepted["tenant"] == "alice"
    assert (refused["status"], refused["error"], "tenant" in refused) == (401, "the API key is wrong", False)
    assert "-key" not in json.dumps([accepted, refused])


def documented(heading: str) -> set[str]:
    """First cells of the table under this heading of docs/observability.md."""
    section = DOCUMENTED.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


async def test_the_documentation_names_each_field_and_each_phase(lines: Any) -> None:
    account = RequestAccount("id", time.monotonic() - 1)
    account.tenant, account.trace_id = "alice", "0af7"
    for _ in range(MAX_ANSWERS + 1):
        answer = account.answer()
        answer.asked = answer.placed = answer.first_token = answer.handed_over = answer.last_token = account.arrived
        answer.arrival = (0.5, 0.25)
    account.close("completions", 500, "an error")
    [line] = lines()
    assert documented("The access log") == set(line) | set(line["answers"][0])
    assert documented("Phases") == set(line["answers"][0]["ms"])
