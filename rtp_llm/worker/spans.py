"""WorkerSpans: one span of each request that a worker computes something of, in the trace that its router began."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rtp_llm.tracing import Attributes, Traced, Tracing, trace_id_of
from rtp_llm.wire.convert import key_of
from rtp_llm.wire.key import RequestKey, WorkerKey
from rtp_llm.wire.v1 import peer_pb2, router_pb2, types_pb2

MAX_LIVE = 4096  # spans; of those that nobody ends (a router is lost, say) the oldest are dropped
REASONS = {types_pb2.FINISH_STOP: "stop", types_pb2.FINISH_LENGTH: "length", types_pb2.FINISH_CANCELLED: "cancelled"}


@dataclass
class _Live:
    trace: Traced
    role: str  # "prefill", "decode" or "generate", which is both


class WorkerSpans:
    """Told what sessions and machines say of a key. A prefill worker's span ends with its first token, the others' with the
    last one. Thread rule: the worker's loop."""

    def __init__(self, tracing: Tracing, worker: WorkerKey, pool: str) -> None:
        self._tracing = tracing
        self._worker = {"rtp_llm.worker": str(worker), "rtp_llm.pool": pool}
        self._live: dict[RequestKey, _Live] = {}

    def __bool__(self) -> bool:
        """Some are under way."""
        return bool(self._live)

    # --- What others say.

    def router_said(self, message: router_pb2.RouterMessage) -> None:
        if message.HasField("submit"):
            submit = message.submit
            alone = submit.alone or submit.solo or not submit.HasField("receiver")
            self._begin(submit.key, submit.request, "generate" if alone else "prefill")
        elif message.HasField("cancel"):
            self._end(message.cancel.key, "cancelled")

    def sender_said(self, message: peer_pb2.SenderMessage) -> None:
        if message.HasField("reserve"):
            self._begin(message.reserve.key, message.reserve.request, "decode")

    # --- What this worker says.

    def to_receiver(self, message: peer_pb2.SenderMessage) -> None:
        """Adds what the receiver continues the trace by."""
        if message.HasField("reserve") and (live := self._live.get(key_of(message.reserve.key))) is not None:
            request = message.reserve.request
            request.traceparent, request.tracestate = live.trace.traceparent, live.trace.tracestate

    def to_router(self, router_epoch: int, message: router_pb2.WorkerMessage) -> None:
        kind = message.WhichOneof("message")
        if kind == "outputs":
            self.outputs(router_epoch, message.outputs)
        elif kind == "committed" and (live := self._live.get(key_of(message.committed.key))) is not None:
            times = message.committed.times
            live.trace.add({"rtp_llm.wire_s": times.wire, "rtp_llm.verify_s": times.verify})
        elif kind in ("busy", "released", "fenced"):
            self._end(getattr(message, kind).key, kind)
        elif kind == "failed":
            self._end(message.failed.key, message.failed.type, error=message.failed.message)

    def outputs(self, router_epoch: int, outputs: router_pb2.Outputs) -> None:
        """A step's tokens, or some of a replay."""
        for row, times in enumerate(outputs.times):
            if times.prefill:
                self._first(_key_at(router_epoch, outputs, row), times, _cached_at(outputs, row))
        for row, finish in enumerate(outputs.finish):
            if finish != types_pb2.FINISH_NONE:
                count: Attributes = {"gen_ai.usage.output_tokens": outputs.position[row] + (outputs.token[row] >= 0)}
                failed = "" if finish in REASONS else "no token could be sampled"
                self._end(_key_at(router_epoch, outputs, row), REASONS.get(finish, "failed"), count, error=failed)

    # --- Inside.

    def _begin(self, key: types_pb2.Key, request: types_pb2.Request, role: str) -> None:
        """Perhaps not for the first time: a sender repeats its Reserve."""
        if not trace_id_of(request.traceparent) or key_of(key) in self._live:
            return
        trace = self._tracing.begin(f"worker {role}", time.monotonic(), request.traceparent, request.tracestate)
        if trace is None or not trace.is_recorded:
            return
        trace.add({**self._worker, "rtp_llm.key": str(key_of(key)), "gen_ai.usage.input_tokens": len(request.prompt)})
        self._live[key_of(key)] = _Live(trace, role)
        if len(self._live) > MAX_LIVE:
            del self._live[next(iter(self._live))]

    def _first(self, key: RequestKey, times: types_pb2.FirstTimes, cached: int) -> None:
        live = self._live.get(key)
        if live is None or live.role == "decode":  # the receiver repeats the sender's first token
            return
        measured: Attributes = {
            "rtp_llm.worker_queue_s": times.queued,
            "rtp_llm.prefill_s": times.prefill,
            "gen_ai.usage.cache_read.input_tokens": cached,
        }
        live.trace.add(measured)
        if live.role == "prefill":
            del self._live[key]
            live.trace.end({"rtp_llm.end": "first_token"})

    def _end(
        self, key: types_pb2.Key | RequestKey, end: str, attributes: Attributes | None = None, error: str = ""
    ) -> None:
        live = self._live.pop(key if isinstance(key, RequestKey) else key_of(key), None)
        if live is not None:
            live.trace.end({**(attributes or {}), "rtp_llm.end": end}, error)


def _key_at(router_epoch: int, outputs: router_pb2.Outputs, row: int) -> RequestKey:
    return RequestKey(router_epoch, outputs.request[row], outputs.choice[row], outputs.attempt[row])


def _cached_at(outputs: router_pb2.Outputs, row: int) -> int:
    return outputs.cached_tokens[row] if outputs.cached_tokens else 0
