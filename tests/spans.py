"""Spans that are kept in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from rtp_llm.tracing import Tracing


def recorded() -> tuple[Tracing, Callable[[], tuple[Any, ...]]]:
    """A Tracing, and what gives the spans of it that have ended, in that order."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider), exporter.get_finished_spans
