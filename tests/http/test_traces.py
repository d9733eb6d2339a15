"""Spans of real processes, at a collector; and without one."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import Cluster

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TRACE = "0af7651916cd43dd8448eb211c80319c"
CLIENTS = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "x-request-id": "mine-1"}
BODY: dict[str, Any] = {"prompt": [20] * 300, "max_tokens": 12, "ignore_eos": True}
DRAINED_S = 30.0


class Collector:
    """OTLP over HTTP. `spans` are (service.instance.id, span), as they came."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []
        self.came = threading.Condition()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"

    def take(self, request: Any) -> None:
        with self.came:
            for each in request.resource_spans:
                instance = {a.key: a.value.string_value for a in each.resource.attributes}["service.instance.id"]
                self.spans += [(instance, span) for scope in each.scope_spans for span in scope.spans]
            self.came.notify_all()

    def wait(self, names: set[str]) -> dict[str, Any]:
        """{name: span} once there is one of each name."""
        with self.came:
            assert self.came.wait_for(lambda: names <= {span.name for _, span in self.spans}, 30), self.spans
            return {span.name: span for _, span in self.spans}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    collector = Collector()
    serving = threading.Thread(target=collector.server.serve_forever, daemon=True)
    serving.start()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


async def test_router_prefill_and_decode_worker_tell_of_one_trace(collector: Collector, tmp_path: Path) -> None:
    async with Cluster.running(log_dir=tmp_path, settings={"otel.traces_endpoint": collector.url}) as cluster:
        response = await cluster.client.post("/v1/completions", json=BODY, headers=CLIENTS)
        assert response.status_code == 200
        model, router = response.json()["model"], cluster.service.fleet.router_id
        whole = f"text_completion {model}"
        names = {whole, "prepare", "queue", "first_token", "decode", "worker prefill", "worker decode"}
        found = await asyncio.to_thread(collector.wait, names)
    assert {span.trace_id.hex() for _, span in collector.spans} == {TRACE} and len(collector.spans) == len(names)
    by_name = {span.name: instance for instance, span in collector.spans}
    assert (by_name[whole], by_name["worker prefill"], by_name["worker decode"]) == (router, "prefill-0", "decode-0")
    assert found["worker prefill"].parent_span_id == found[whole].span_id
    assert found["worker decode"].parent_span_id == found["worker prefill"].span_id
    attributes = {a.key: a.value for a in found["worker decode"].attributes}
    assert attributes["gen_ai.usage.output_tokens"].int_value == 12
    assert attributes["rtp_llm.verify_s"].double_value > 0
    prefill = {a.key: a.value for a in found["worker prefill"].attributes}
    assert prefill["rtp_llm.prefill_s"].double_value > 0


@pytest.mark.parametrize("path", ["", "/v1/traces"], ids=["grpc", "http"])
async def test_a_collector_that_is_gone_fails_no_request_and_holds_up_no_end(path: str, tmp_path: Path) -> None:
    settings = {"otel.traces_endpoint": f"http://127.0.0.1:1{path}"}
    async with Cluster.running(log_dir=tmp_path, settings=settings) as cluster:
        answers = [cluster.client.post("/v1/completions", json=BODY | {"seed": seed}) for seed in range(8)]
        assert {answer.status_code for answer in await asyncio.gather(*answers)} == {200}
        for worker in cluster.workers:
            worker.signal(signal.SIGTERM)
        assert [await worker.exit_status(DRAINED_S) for worker in cluster.workers] == [0, 0]
