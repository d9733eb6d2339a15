"""Spans of OpenTelemetry, and that nothing which is wrong with them reaches a request."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest

from rtp_llm.config import OtelSettings, load_config
from rtp_llm.errors import ConfigError
from rtp_llm.tracing import FLUSH_S, Tracing, _is_wanted, _protocol, trace_id_of

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel")

from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from tests.spans import recorded

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CLIENTS = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("header", "trace_id"),
    [
        (CLIENTS, TRACE),
        (f"00-{TRACE}-{SPAN}-00", TRACE),
        (f"01-{TRACE}-{SPAN}-01-more", TRACE),
        (f"00-{TRACE}-{SPAN}-01more", ""),
        (f"00-{'0' * 32}-{SPAN}-01", ""),
        (f"00-{TRACE}-{'0' * 16}-01", ""),
        (TRACE, ""),
        ("", ""),
    ],
)
def test_the_trace_of_a_header(header: str, trace_id: str) -> None:
    assert trace_id_of(header) == trace_id


@pytest.mark.parametrize(
    ("endpoint", "environ", "wanted"),
    [
        ("", {}, False),
        ("http://c:4317", {}, True),
        ("", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, True),
        ("", {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4317"}, True),
        ("", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_TRACES_EXPORTER": "none"}, False),
        ("http://c:4317", {"OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_spans_are_made_where_a_collector_is_named(endpoint: str, environ: dict[str, str], wanted: bool) -> None:
    assert _is_wanted(OtelSettings(traces_endpoint=endpoint), environ) is wanted


@pytest.mark.parametrize(
    ("endpoint", "protocol", "environ", "found"),
    [
        ("http://c:4317", "", {}, "grpc"),
        ("c:4317", "", {}, "grpc"),
        ("http://c:4318/v1/traces", "", {}, "http/protobuf"),
        ("http://c:4318/v1/traces", "grpc", {}, "grpc"),
        ("http://c:4318", "", {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "http/protobuf"),
        ("", "", {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "grpc"),
    ],
)
def test_the_protocol_is_the_one_that_is_named_or_the_endpoints(
    endpoint: str, protocol: Any, environ: dict[str, str], found: str
) -> None:
    assert _protocol(OtelSettings(traces_endpoint=endpoint, traces_protocol=protocol), environ) == found


def test_nobody_who_asks_for_no_spans_loads_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert Tracing.of(load_config(environ={}).otel, {}) is None


def test_without_the_extra_a_setting_is_refused_and_a_variable_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"otel.traces_endpoint http://c:4317 needs `pip install rtp-llm\[otel\]`"):
        Tracing.of(OtelSettings(traces_endpoint="http://c:4317"), {})
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317")
    assert Tracing.of(OtelSettings(), {}) is None


def test_a_span_continues_the_clients_trace_and_is_continued() -> None:
    tracing, spans = recorded()
    now = time.monotonic()
    begun = tracing.begin("a", now - 2, CLIENTS, "vendor=1")
    assert begun is not None and begun.is_recorded
    assert (begun.trace_id, begun.tracestate) == (TRACE, "vendor=1")
    begun.child("b", now - 1, now, {"n": 1})
    begun.end({"m": 2}, error="it failed")
    child, span = spans()
    assert begun.traceparent == f"00-{TRACE}-{span.context.span_id:016x}-01"
    assert format(span.parent.span_id, "016x") == SPAN
    assert child.parent.span_id == span.context.span_id and child.context.trace_id == span.context.trace_id
    assert child.end_time - child.start_time == pytest.approx(1e9, abs=1e3)
    assert child.start_time - span.start_time == pytest.approx(1e9, abs=1e3) and child.end_time <= span.end_time
    assert (dict(child.attributes), dict(span.attributes)) == ({"n": 1}, {"m": 2})
    assert (span.status.is_ok, span.status.description) == (False, "it failed")


@pytest.mark.parametrize("header", ["", "no-trace", f"00-{'0' * 32}-{SPAN}-01"])
def test_without_a_clients_trace_a_new_one_begins(header: str) -> None:
    tracing, spans = recorded()
    begun = tracing.begin("a", time.monotonic(), header, "")
    assert begun is not None and begun.is_recorded and begun.trace_id.strip("0")
    begun.end({})
    [span] = spans()
    assert span.parent is None


def test_a_trace_that_its_client_does_not_sample_is_named_and_not_recorded() -> None:
    tracing, spans = recorded()
    begun = tracing.begin("a", time.monotonic(), f"00-{TRACE}-{SPAN}-00", "")
    assert begun is not None and not begun.is_recorded
    assert (begun.trace_id, begun.traceparent) == (TRACE, "")
    begun.end({})
    assert spans() == ()


class Broken(SpanProcessor):
    def __init__(self, at: str) -> None:
        self.at = at

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if self.at == "start":
            raise RuntimeError("broken")

    def on_end(self, span: Any) -> None:
        raise RuntimeError("broken")


@pytest.mark.parametrize("at", ["start", "end"])
def test_a_span_that_fails_is_logged_and_nothing_else(at: str, caplog: pytest.LogCaptureFixture) -> None:
    provider = TracerProvider()
    provider.add_span_processor(Broken(at))
    begun = Tracing(provider).begin("a", time.monotonic(), "", "")
    assert (begun is None) == (at == "start")
    if begun is not None:
        begun.child("b", time.monotonic(), time.monotonic(), {})
        begun.end({})
    assert {record.message for record in caplog.records if record.name == "rtp_llm.tracing"} == {"a span failed"}


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "http://127.0.0.1:1/v1/traces"])
def test_a_collector_that_is_gone_holds_nobody_up(endpoint: str) -> None:
    tracing = Tracing.of(OtelSettings(traces_endpoint=endpoint), {})
    assert tracing is not None
    for _ in range(3000):  # more than wait for it
        begun = tracing.begin("a", time.monotonic(), "", "")
        assert begun is not None
        begun.end({})
    closing = time.monotonic()
    tracing.close()
    assert time.monotonic() - closing < 5 * FLUSH_S  # the SDK's own end waits for 30
