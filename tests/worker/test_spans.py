"""What sessions and machines say of a key, as one span a worker."""

from __future__ import annotations

from typing import Any

import pytest

from rtp_llm.wire.key import WorkerKey
from rtp_llm.wire.v1 import peer_pb2, router_pb2, types_pb2
from rtp_llm.worker import spans as worker_spans
from rtp_llm.worker.spans import WorkerSpans

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel")

from tests.spans import recorded

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ROUTER = 77


def request(traceparent: str = f"00-{TRACE}-{SPAN}-01") -> types_pb2.Request:
    return types_pb2.Request(prompt=[1, 2, 3], traceparent=traceparent, tracestate="vendor=1")


def key(number: int = 1) -> types_pb2.Key:
    return types_pb2.Key(router_epoch=ROUTER, request=number, choice=0, attempt=2)


def submit(number: int = 1, receiver: str = "", **more: Any) -> router_pb2.RouterMessage:
    worker = types_pb2.WorkerKey(id=receiver, epoch=1) if receiver else None
    return router_pb2.RouterMessage(
        submit=router_pb2.Submit(key=key(number), request=request(**more), receiver=worker, alone=not receiver)
    )


def outputs(position: int, finish: int = 0, prefill: float = 0.0) -> router_pb2.Outputs:
    """One row of another router's request, and one of ours."""
    times = [types_pb2.FirstTimes(), types_pb2.FirstTimes(queued=0.25, prefill=prefill)]
    return router_pb2.Outputs(
        request=[9, 1],
        choice=[0, 0],
        attempt=[2, 2],
        position=[0, position],
        token=[5, 5],
        finish=[0, finish],  # type: ignore[list-item]
        cached_tokens=[0, 2],
        times=times if prefill else [],
    )


class Bench:
    def __init__(self, name: str) -> None:
        tracing, self.ended = recorded()
        self.spans = WorkerSpans(tracing, WorkerKey(name, 3), "a-pool")

    def only(self) -> Any:
        [span] = self.ended()
        return span


def test_the_spans_of_a_handover_are_a_chain_from_router_to_sender_to_receiver() -> None:
    s, r = Bench("s"), Bench("r")
    s.spans.router_said(submit(receiver="r"))
    reserve = peer_pb2.SenderMessage(reserve=peer_pb2.Reserve(key=key(), request=types_pb2.Request(prompt=[1, 2, 3])))
    s.spans.to_receiver(reserve)
    r.spans.sender_said(reserve)
    r.spans.sender_said(reserve)  # repeated
    s.spans.to_router(ROUTER, router_pb2.WorkerMessage(outputs=outputs(0, prefill=0.5)))
    times = types_pb2.ArrivalTimes(wire=0.5, verify=0.25)
    r.spans.to_router(ROUTER, router_pb2.WorkerMessage(committed=router_pb2.Committed(key=key(), times=times)))
    r.spans.to_router(ROUTER, router_pb2.WorkerMessage(outputs=outputs(0, prefill=0.5)))  # the sender's first token
    r.spans.outputs(ROUTER, outputs(1))
    assert r.spans and not s.spans
    r.spans.outputs(ROUTER, outputs(2, finish=types_pb2.FINISH_LENGTH))
    assert not r.spans

    prefill, decode = s.only(), r.only()
    assert (prefill.name, decode.name) == ("worker prefill", "worker decode")
    assert {format(span.context.trace_id, "032x") for span in (prefill, decode)} == {TRACE}
    assert format(prefill.parent.span_id, "016x") == SPAN and decode.parent.span_id == prefill.context.span_id
    assert decode.context.trace_state.to_header() == "vendor=1"
    assert dict(prefill.attributes) == {
        "rtp_llm.worker": str(WorkerKey("s", 3)),
        "rtp_llm.pool": "a-pool",
        "rtp_llm.key": "000000000000004d/1.0#2",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 2,
        "rtp_llm.worker_queue_s": 0.25,
        "rtp_llm.prefill_s": 0.5,
        "rtp_llm.end": "first_token",
    }
    found = dict(decode.attributes)
    assert (found["rtp_llm.wire_s"], found["rtp_llm.verify_s"], found["rtp_llm.end"]) == (0.5, 0.25, "length")
    assert found["gen_ai.usage.output_tokens"] == 3 and "rtp_llm.prefill_s" not in found


def test_a_reserve_that_is_repeated_begins_nothing_anew() -> None:
    r = Bench("r")
    reserve = peer_pb2.SenderMessage(reserve=peer_pb2.Reserve(key=key(), request=request()))
    r.spans.sender_said(reserve)
    begun = dict(r.spans._live)
    r.spans.sender_said(reserve)
    assert r.spans._live == begun


def test_who_runs_it_alone_has_one_span_of_both_parts() -> None:
    w = Bench("w")
    w.spans.router_said(submit())
    w.spans.outputs(ROUTER, outputs(0, prefill=0.5))
    w.spans.outputs(ROUTER, outputs(1, finish=types_pb2.FINISH_STOP))
    found = dict(w.only().attributes)
    assert (w.only().name, found["rtp_llm.prefill_s"], found["rtp_llm.end"]) == ("worker generate", 0.5, "stop")


@pytest.mark.parametrize(
    ("said", "end"),
    [
        (router_pb2.WorkerMessage(busy=router_pb2.Busy(key=key())), "busy"),
        (router_pb2.WorkerMessage(released=router_pb2.Released(key=key())), "released"),
        (router_pb2.WorkerMessage(fenced=router_pb2.Fenced(key=key())), "fenced"),
        (router_pb2.WorkerMessage(failed=router_pb2.Failed(key=key(), type="EngineError")), "EngineError"),
        (router_pb2.RouterMessage(cancel=router_pb2.Cancel(key=key())), "cancelled"),
    ],
)
def test_a_span_ends_however_its_request_ends_here(said: Any, end: str) -> None:
    s = Bench("s")
    s.spans.router_said(submit(receiver="r"))
    if isinstance(said, router_pb2.RouterMessage):
        s.spans.router_said(said)
    else:
        s.spans.to_router(ROUTER, said)
    assert s.only().attributes["rtp_llm.end"] == end and not s.spans


def test_a_token_that_could_not_be_sampled_is_an_error_and_no_output() -> None:
    w = Bench("w")
    w.spans.router_said(submit())
    failed = outputs(2, finish=types_pb2.FINISH_FAILED)
    failed.token[1] = -1
    w.spans.outputs(ROUTER, failed)
    span = w.only()
    assert span.attributes["gen_ai.usage.output_tokens"] == 2 and not span.status.is_ok


@pytest.mark.parametrize("traceparent", ["", "no trace", f"00-{TRACE}-{SPAN}-00"])
def test_what_nobody_records_has_no_span_here(traceparent: str) -> None:
    w = Bench("w")
    w.spans.router_said(submit(traceparent=traceparent))
    assert not w.spans


def test_spans_that_nobody_ends_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_spans, "MAX_LIVE", 2)
    w = Bench("w")
    for number in (5, 1, 6, 7):
        w.spans.router_said(submit(number))
        w.spans.outputs(ROUTER, outputs(1, finish=types_pb2.FINISH_STOP))
    assert len(w.spans._live) == 2 and w.only().attributes["rtp_llm.key"].endswith("/1.0#2")
