"""Tracing: OpenTelemetry spans of requests, where somebody asks for them (the extra `otel`). The only place that knows it.

A span is begun when its identity is needed, for whoever continues the trace, and told the rest when it is over, from times
that were measured anyway. The SDK's own thread exports: nothing here waits, and no failure of it reaches a request.

Times are time.monotonic()'s.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rtp_llm.config import OtelSettings
from rtp_llm.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

log = logging.getLogger("rtp_llm.tracing")

SERVICE = "rtp-llm"
FLUSH_S = 2.0  # that the end of a process waits for a collector
MAX_TRACESTATE_CHARS = 512  # W3C: what has to be passed on at least
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-|$)")
_URL_WITH_PATH = re.compile(r"https?://[^/]+/.")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")

Attributes = dict[str, "str | int | float | list[str]"]


def trace_id_of(traceparent: str) -> str:
    """Of W3C's header; empty: it names no trace."""
    found = _TRACEPARENT.match(traceparent)
    return found[1] if found is not None and found[1].strip("0") and found[2].strip("0") else ""


class Traced:
    """One span that is under way. What others continue it by stands in `traceparent` and `tracestate`: empty where nobody
    records it. It is exported once it ends."""

    def __init__(self, span: Span, tracer: Tracer, epoch: float) -> None:
        """`epoch`: by time.monotonic(), when 1970 began."""
        context = span.get_span_context()
        self.trace_id = format(context.trace_id, "032x")
        self.is_recorded = span.is_recording()
        self.traceparent = f"00-{self.trace_id}-{context.span_id:016x}-01" if self.is_recorded else ""
        self.tracestate = context.trace_state.to_header() if self.is_recorded else ""
        self._span = span
        self._tracer = tracer
        self._epoch = epoch

    def add(self, attributes: Attributes) -> None:
        with _harmless():
            self._span.set_attributes(attributes)

    def child(self, name: str, start: float, end: float, attributes: Attributes) -> None:
        """A part of it that is over."""
        from opentelemetry.trace import set_span_in_context

        with _harmless():
            part = self._tracer.start_span(
                name, set_span_in_context(self._span), attributes=attributes, start_time=self._nanoseconds(start)
            )
            part.end(self._nanoseconds(end))

    def end(self, attributes: Attributes, error: str = "") -> None:
        """Now. `error`: what went wrong."""
        from opentelemetry.trace import Status, StatusCode

        with _harmless():
            self._span.set_attributes(attributes)
            if error:
                self._span.set_status(Status(StatusCode.ERROR, error))
            self._span.end(self._nanoseconds(time.monotonic()))

    def _nanoseconds(self, at: float) -> int:
        return int((at - self._epoch) * 1e9)


class Tracing:
    """The spans of one process."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("rtp_llm")
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def of(cls, settings: OtelSettings, resource: Mapping[str, str]) -> Tracing | None:
        """As the settings, or else OTEL_* variables, say; None: nobody wants spans. `resource` describes this process.

        Raises:
            ConfigError: the settings ask for spans, and the extra `otel` isn't installed.
        """
        if not _is_wanted(settings, os.environ):
            return None
        try:
            return cls(_provider(settings, resource))
        except ImportError as error:
            if settings.traces_endpoint:
                text = f"otel.traces_endpoint {settings.traces_endpoint} needs `pip install rtp-llm[otel]`"
                raise ConfigError(f"{text} ({error})") from error
            log.info("OTEL_* variables name a collector; no spans without `pip install rtp-llm[otel]` (%s)", error)
            return None

    def begin(self, name: str, start: float, traceparent: str, tracestate: str) -> Traced | None:
        """A span of somebody's request: part of the trace that `traceparent` names, or the root of a new one, as the sampler
        decides. None: it failed."""
        from opentelemetry.trace import SpanKind

        carrier = {"traceparent": traceparent, "tracestate": tracestate[:MAX_TRACESTATE_CHARS]}
        try:
            parent = self._propagator.extract(carrier)
            epoch = time.monotonic() - time.time()  # all of a request's spans here have one, whatever the clocks do
            span = self._tracer.start_span(name, parent, SpanKind.SERVER, start_time=int((start - epoch) * 1e9))
            return Traced(span, self._tracer, epoch)
        except Exception:
            log.exception("a span failed")
            return None

    def close(self) -> None:
        """Export what waits, for at most FLUSH_S: a collector that is gone holds nobody up."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(FLUSH_S)


def _is_wanted(settings: OtelSettings, environ: Mapping[str, str]) -> bool:
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if settings.traces_endpoint:
        return True
    exporter = environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    return exporter == "otlp" and any(environ.get(name) for name in _ENDPOINTS)


def _provider(settings: OtelSettings, resource: Mapping[str, str]) -> TracerProvider:
    """Sampler, batches and their limits are as the SDK reads them from OTEL_* variables."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = os.environ.get("OTEL_SERVICE_NAME") or SERVICE
    provider = TracerProvider(resource=Resource.create({"service.name": name, **resource}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_exporter(settings)))
    return provider


def _exporter(settings: OtelSettings) -> SpanExporter:
    endpoint = settings.traces_endpoint or None
    if _protocol(settings, os.environ) == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc(endpoint=endpoint)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

    return Http(endpoint=endpoint)


def _protocol(settings: OtelSettings, environ: Mapping[str, str]) -> str:
    """As vLLM and OpenTelemetry's Python do, gRPC unless something else is said; a URL with a path is one of HTTP."""
    said: str = settings.traces_protocol
    said = said or next((environ[name] for name in _PROTOCOLS if environ.get(name)), "")
    return said or ("http/protobuf" if _URL_WITH_PATH.match(settings.traces_endpoint) else "grpc")


@contextlib.contextmanager
def _harmless() -> Iterator[None]:
    """A span that fails is one that lacks."""
    try:
        yield
    except Exception:
        log.exception("a span failed")
