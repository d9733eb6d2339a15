"""`rtp-llm bench serve` against a scripted server: what it sends, when, and what it makes of the answers."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from rtp_llm import cli
from rtp_llm.load.client import Outcome, run
from rtp_llm.load.report import Objective, percentile, summary
from rtp_llm.load.workload import Arrival

Answer = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


class Server:
    """Runs on a loop of its own thread."""

    def __init__(self) -> None:
        self.answer: Answer = whole
        self.bodies: list[dict[str, Any]] = []
        self.running = self.most_running = 0
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "Server":
        self._thread.start()
        port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> int:
        app = web.Application()
        app.add_routes([web.post("/v1/completions", self._completions), web.get("/v1/models", self._models)])
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self.answer(request, body)
        finally:
            self.running -= 1

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "first"}, {"id": "second"}]})


async def stream(request: web.Request, *events: object) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for event in events:
        await response.write(event if isinstance(event, bytes) else f"data: {json.dumps(event)}\n\n".encode())
    return response


def token(text: str = "x") -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": None}]}


DONE = b"data: [DONE]\n\n"


async def whole(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    await asyncio.sleep(0.01)
    usage = {"completion_tokens": body["max_tokens"], "prompt_tokens_details": {"cached_tokens": 2}}
    tokens = [token()] * body["max_tokens"]
    return await stream(request, *tokens[:1], b": ping\n\n", *tokens[1:], {"choices": [], "usage": usage}, DONE)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as found:
        yield found


def arrivals(*due: float, tokens: int = 3) -> list[Arrival]:
    return [Arrival(at, [5, 6, 7], tokens) for at in due]


def nothing(_: Outcome) -> None: ...


async def test_requests_are_sent_when_they_are_due_and_ask_for_so_many_tokens(server: Server) -> None:
    outcomes = await run(server.url, "m", arrivals(0.0, 0.2), None, nothing)
    assert server.bodies[0] == {
        "model": "m", "prompt": [5, 6, 7], "max_tokens": 3, "ignore_eos": True, "temperature": 0,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    assert [each.error for each in outcomes] == ["", ""]
    assert all(each.sent >= each.due for each in outcomes) and outcomes[1].due == 0.2
    assert [(each.tokens, len(each.said), each.cached_tokens) for each in outcomes] == [(3, 3, 2)] * 2
    assert all(each.first_token_s >= 0.01 and each.ended >= each.said[-1] for each in outcomes)


async def test_no_more_run_at_once_than_asked(server: Server) -> None:
    outcomes = await run(server.url, "m", arrivals(*[0.0] * 9), 2, nothing)
    assert server.most_running == 2 and len(outcomes) == 9
    assert outcomes[8].due >= outcomes[0].ended  # it was due when a place was free
    server.most_running = 0
    await run(server.url, "m", arrivals(*[0.0] * 9), None, nothing)
    assert server.most_running > 2


async def failing(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    kind = body["max_tokens"]
    if kind == 1:
        return web.json_response({"error": {"message": "too many"}}, status=429)
    if kind == 2:
        return await stream(request, token(), {"error": {"message": "lost"}}, DONE)
    if kind == 3:
        return await stream(request, token())
    if kind == 4:
        return await stream(request, DONE)
    if kind == 5:
        return await stream(request, b"data: {nonsense\n\n", DONE)
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def test_each_way_to_fail_is_named(server: Server) -> None:
    server.answer = failing
    outcomes = await run(server.url, "m", [Arrival(0.0, [5], kind) for kind in range(1, 7)], None, nothing)
    said = [each.error for each in outcomes]
    assert said[:4] == ["429: too many", "lost", "the stream broke off", "no token came"]
    assert said[4].startswith("Expecting property name") and said[5] != ""


async def test_a_server_that_is_away_fails_each_request() -> None:
    [outcome] = await run("http://127.0.0.1:1", "m", arrivals(0.0), None, nothing)
    assert "127.0.0.1:1" in outcome.error


def outcome(due: float, *said: float, tokens: int = 0, error: str = "") -> Outcome:
    found = Outcome(10, len(said), due, sent=due, said=list(said), tokens=tokens or len(said), error=error)
    found.ended = said[-1] if said else due
    return found


def test_a_summary_counts_from_when_requests_were_due() -> None:
    outcomes = [outcome(1.0, 1.5, 1.6, 1.8), outcome(2.0, 2.1, 2.2, tokens=4), outcome(3.0, error="lost")]
    found = summary(outcomes, Objective(first_token_s=0.4))
    assert (found["requests"], found["failed"], found["errors"]) == (3, 1, {"lost": 1})
    assert found["seconds"] == pytest.approx(2.0) and found["output_tokens"] == 7
    assert found["requests_per_s"] == pytest.approx(1.0) and found["output_tokens_per_s"] == pytest.approx(3.5)
    assert found["first_token_s"]["p50"] == pytest.approx(0.1) and found["first_token_s"]["max"] == pytest.approx(0.5)
    assert found["token_s"]["max"] == pytest.approx(0.15)
    assert found["gap_s"]["max"] == pytest.approx(0.2)
    assert (found["met"], found["goodput_per_s"]) == (1, pytest.approx(0.5))
    assert summary([outcome(0.0, error="lost")], Objective())["first_token_s"] is None


def test_an_objective_may_be_of_either_kind() -> None:
    slow = outcome(0.0, 0.5, 1.0)
    assert Objective().met_by(slow) and not Objective().met_by(outcome(0.0, 0.1, error="lost"))
    assert not Objective(first_token_s=0.4).met_by(slow) and Objective(first_token_s=0.5).met_by(slow)
    assert not Objective(token_s=0.4).met_by(slow) and Objective(token_s=0.5).met_by(slow)
    assert Objective(token_s=0.1).met_by(outcome(0.0, 0.5))  # one token has no time of its own


def test_percentiles_are_values_that_were_seen() -> None:
    assert [percentile([3.0, 1.0, 2.0], percent) for percent in (1, 33, 34, 67, 100)] == [1.0, 1.0, 2.0, 3.0, 3.0]


def test_the_command_prints_a_table_and_writes_what_it_saw(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "found.json"
    flags = ["--requests", "6", "--rate", "1000", "--prompt-tokens", "4-6", "--output-tokens", "2"]
    status = cli.main(
        ["bench", "serve", "--url", f"{server.url}/v1", *flags, "--first-token-ms", "9000", "--json", str(file)]
    )
    said = capsys.readouterr().out
    assert status == 0 and "6 requests in" in said and "within the objective: 6 of 6" in said
    assert {body["model"] for body in server.bodies} == {"first"}
    found = json.loads(file.read_text())
    assert found["workload"]["model"] == "first" and found["workload"]["rate"] == 1000.0
    assert found["summary"]["output_tokens"] == 12 and len(found["requests"]) == 6

    server.answer = failing
    assert cli.main(["bench", "serve", "--url", server.url, "--requests", "2", "--output-tokens", "1"]) == 1
    assert "2 × 429: too many" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        (["--url", "http://127.0.0.1:1"], 1, "http://127.0.0.1:1: "),
        (["--url", "ftp://x"], 1, "url must be http://"),
        (["--rate", "0"], 2, "argument --rate: invalid positive number value: '0'"),
        (["--prompt-tokens", "9-3"], 2, "argument --prompt-tokens: invalid number of tokens, or range value: '9-3'"),
        (["--vocabulary", "3"], 1, "vocabulary must be greater than 3, got 3"),
    ],
)
def test_what_is_wrong_is_one_line(
    flags: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        found = cli.main(["bench", "serve", *flags])
    except SystemExit as end:
        found = int(end.code or 0)
    assert found == status and said in capsys.readouterr().err
