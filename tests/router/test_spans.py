"""Spans of a request at its router: docs/observability.md."""

from __future__ import annotations

import json
import logging
import time
from itertools import pairwise
from typing import Any

import httpx
import pytest

from rtp_llm.errors import WorkerLostError
from rtp_llm.router import spans as router_spans
from rtp_llm.router.account import MAX_ANSWERS, RequestAccount, current_account
from rtp_llm.router.ingress import build_ingress
from tests.router.test_ingress import CHAT, ScriptedBackend

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel")

from tests.spans import recorded

TRACE = "0af7651916cd43dd8448eb211c80319c"
CLIENTS = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "tracestate": "vendor=1"}


class TracedBackend(ScriptedBackend):
    """Notes what a worker would be told of each request's trace."""

    def __init__(self) -> None:
        super().__init__()
        self.tracing, self.spans = recorded()
        self.told: list[tuple[str, str]] = []

    async def ask(self, *arguments: Any) -> Any:
        trace = current_account().trace
        self.told.append(("", "") if trace is None else (trace.traceparent, trace.tracestate))
        return await super().ask(*arguments)


async def post(
    backend: ScriptedBackend, body: dict[str, Any], headers: dict[str, str], path: str = "/v1/chat/completions"
) -> httpx.Response:
    app = build_ingress(lambda: backend)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://router") as http:
        return await http.post(path, json=body, headers=headers)


def logged(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(record.message) for record in caplog.records if record.name == "rtp_llm.access"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_a_span_in_the_clients_trace(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rtp_llm.access")
    backend = TracedBackend()
    await post(backend, {**CHAT, "stream": stream}, CLIENTS | {"x-request-id": "mine-1"})
    [span] = backend.spans()
    assert (span.name, span.kind.name) == ("chat demo", "SERVER")
    assert format(span.context.trace_id, "032x") == TRACE and span.parent.is_remote
    assert backend.told == [(f"00-{TRACE}-{span.context.span_id:016x}-01", "vendor=1")]
    attributes = dict(span.attributes)
    assert (attributes["rtp_llm.request_id"], attributes["http.response.status_code"]) == ("mine-1", 200)
    assert (attributes["gen_ai.operation.name"], attributes["gen_ai.request.model"]) == ("chat", "demo")
    [line] = logged(caplog)
    assert line["trace_id"] == TRACE


async def test_the_trace_of_a_client_is_in_the_log_where_nobody_wants_spans(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rtp_llm.access")
    await post(ScriptedBackend(), CHAT, CLIENTS)
    await post(ScriptedBackend(), CHAT, {})
    named, unnamed = logged(caplog)
    assert named["trace_id"] == TRACE and "trace_id" not in unnamed


async def test_a_trace_that_begins_here_is_in_the_log_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rtp_llm.access")
    backend = TracedBackend()
    await post(backend, CHAT, {})
    [span], [line] = backend.spans(), logged(caplog)
    assert line["trace_id"] == format(span.context.trace_id, "032x")


async def test_what_the_client_does_not_sample_is_not_told_to_workers() -> None:
    backend = TracedBackend()
    await post(backend, CHAT, CLIENTS | {"traceparent": CLIENTS["traceparent"][:-1] + "0"})
    assert (backend.spans(), backend.told) == ((), [("", "")])


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/chat/completions", CHAT, "chat demo"),
        ("/v1/completions", {"prompt": "x"}, "text_completion demo"),
        ("/v1/messages", {**CHAT, "max_tokens": 5}, "chat demo"),
    ],
)
async def test_each_way_to_ask_has_a_span(path: str, body: dict[str, Any], name: str) -> None:
    backend = TracedBackend()
    assert (await post(backend, body, {}, path)).status_code == 200
    [span] = backend.spans()
    assert span.name == name


@pytest.mark.parametrize(("error", "status"), [(WorkerLostError("lost thrice"), "ERROR"), (None, "UNSET")])
async def test_an_error_of_ours_is_one_of_the_span(error: Exception | None, status: str) -> None:
    backend = TracedBackend()
    backend.error, backend.error_after = error, 1
    await post(backend, CHAT, {})
    [span] = backend.spans()
    assert span.status.status_code.name == status
    assert span.status.description == (None if error is None else "lost thrice")


async def test_a_wrong_request_is_no_error_of_the_span() -> None:
    backend = TracedBackend()
    await post(backend, {**CHAT, "temperature": -1}, {})
    [span] = backend.spans()
    assert (span.attributes["http.response.status_code"], span.status.status_code.name) == (400, "UNSET")


def test_phases_of_each_answer_are_spans_one_after_the_other() -> None:
    tracing, spans = recorded()
    account = RequestAccount("id", time.monotonic() - 1)
    for choice in range(2):
        answer = account.answer(7, choice)
        answer.prompt_tokens, answer.cached_tokens, answer.tokens, answer.end = 5, 2, 3, "stop"
        answer.asked, answer.placed = account.arrived + 0.1, account.arrived + 0.2
        answer.at_worker, answer.first_token = (0.05, 0.1), account.arrived + 0.4
        answer.handed_over, answer.arrival = account.arrived + 0.5, (0.02, 0.01)
        answer.last_token, answer.workers = account.arrived + 0.9, [["p0", "d0"], ["p1"]]
    trace = tracing.begin("chat m", account.arrived, "", "")
    assert trace is not None
    router_spans.end(trace, account, "chat_completions", "m", 200, "")
    *phases, whole = spans()
    assert [span.name for span in phases] == ["prepare", "queue", "first_token", "decode"] * 2
    assert {span.parent.span_id for span in phases} == {whole.context.span_id}
    for first, second in pairwise(phases[:4]):
        assert first.end_time == pytest.approx(second.start_time, abs=1e3)
    assert phases[0].start_time == pytest.approx(whole.start_time, abs=1e3)
    first, decode = [dict(span.attributes) for span in phases[2:4]]
    assert (first["rtp_llm.workers"], first["rtp_llm.choice"]) == (("p0>d0", "p1"), 0)
    assert first["rtp_llm.worker_queue_s"] == pytest.approx(0.05) and first["rtp_llm.prefill_s"] == pytest.approx(0.1)
    assert (decode["rtp_llm.wire_s"], decode["rtp_llm.verify_s"], decode["rtp_llm.end"]) == (0.02, 0.01, "stop")
    attributes = dict(whole.attributes)
    assert attributes["gen_ai.usage.input_tokens"] == 5 and attributes["gen_ai.usage.output_tokens"] == 6
    assert attributes["gen_ai.usage.cache_read.input_tokens"] == 2
    assert attributes["gen_ai.response.finish_reasons"] == ("stop", "stop")
    assert attributes["gen_ai.response.time_to_first_chunk"] == pytest.approx(0.4)


def test_of_many_answers_some_are_told() -> None:
    tracing, spans = recorded()
    account = RequestAccount("id", time.monotonic())
    for choice in range(MAX_ANSWERS + 3):
        account.answer(1, choice).asked = time.monotonic()
    trace = tracing.begin("a", account.arrived, "", "")
    assert trace is not None
    router_spans.end(trace, account, "completions", "m", 200, "")
    assert len(spans()) == MAX_ANSWERS + 1
