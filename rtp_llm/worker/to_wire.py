"""What the native machines say, as wire messages: one function per kind of listener."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from rtp_llm._native import _engine
from rtp_llm.wire.convert import times_message, top_message
from rtp_llm.wire.key import WorkerKey
from rtp_llm.wire.v1 import peer_pb2, router_pb2, types_pb2

said: Any = _engine.message


def worker(native: Any) -> WorkerKey:
    return WorkerKey(native.id, native.epoch)


def key(native: Any) -> types_pb2.Key:
    return types_pb2.Key(
        router_epoch=native.router_epoch, request=native.request, choice=native.choice, attempt=native.attempt
    )


def request(spec: Any) -> types_pb2.Request:
    return types_pb2.Request(
        prompt=spec.prompt,
        sampling=sampling(spec.sampling),
        cache_salt=spec.cache_salt,
        priority=spec.priority,
    )


def sampling(native: Any) -> types_pb2.SamplingParams:
    return types_pb2.SamplingParams(**{name: getattr(native, name) for name in _engine.SamplingParams.FIELDS})


def sampled_token(native: Any) -> types_pb2.SampledToken:
    return types_pb2.SampledToken(
        token=native.token,
        logprob=native.logprob,
        top=[types_pb2.TopLogprob(token=token, logprob=value) for token, value in native.top_logprobs],
        position=native.position,
        cached_tokens=native.num_cached_tokens,
        times=times_message(native.times.queued, native.times.prefill),
    )


def to_router(body: Any) -> router_pb2.WorkerMessage:
    return _TO_ROUTER[type(body)](body)


def to_sender(body: Any) -> peer_pb2.ReceiverMessage:
    return _TO_SENDER[type(body)](body)


def to_receiver(body: Any) -> peer_pb2.SenderMessage:
    return _TO_RECEIVER[type(body)](body)


def _outputs(body: Any) -> router_pb2.WorkerMessage:
    k, tokens = body.key, body.tokens
    logprobs = [token.logprob for token in tokens]
    top = [token.top_logprobs for token in tokens]
    cached = [token.num_cached_tokens for token in tokens]
    times = [token.times for token in tokens]
    return router_pb2.WorkerMessage(
        outputs=router_pb2.Outputs(
            request=[k.request] * len(tokens),
            choice=[k.choice] * len(tokens),
            attempt=[k.attempt] * len(tokens),
            position=[token.position for token in tokens],
            token=[token.token for token in tokens],
            finish=[token.finish for token in tokens],
            logprob=[] if all(math.isnan(value) for value in logprobs) else logprobs,
            top=[top_message(entries) for entries in top] if any(top) else [],
            cached_tokens=cached if any(cached) else [],
            times=[times_message(each.queued, each.prefill) for each in times]
            if any(each.prefill for each in times)
            else [],
        )
    )


def _busy(m: Any) -> router_pb2.WorkerMessage:
    return router_pb2.WorkerMessage(busy=router_pb2.Busy(key=key(m.key), queued_tokens=m.queued_tokens, limit=m.limit))


def _failed(m: Any) -> router_pb2.WorkerMessage:
    return router_pb2.WorkerMessage(
        failed=router_pb2.Failed(key=key(m.key), type=m.type, message=m.message, param=m.param)
    )


def _committed(m: Any) -> router_pb2.WorkerMessage:
    times = types_pb2.ArrivalTimes(wire=m.times.wire, verify=m.times.verify)
    return router_pb2.WorkerMessage(committed=router_pb2.Committed(key=key(m.key), times=times))


def _granted(m: Any) -> peer_pb2.ReceiverMessage:
    return peer_pb2.ReceiverMessage(
        granted=peer_pb2.Granted(key=key(m.key), grant=m.grant, prefix_tokens=m.prefix_tokens, lease_seconds=m.lease)
    )


def _bad_checksum(m: Any) -> peer_pb2.ReceiverMessage:
    return peer_pb2.ReceiverMessage(
        bad_checksum=peer_pb2.BadChecksum(key=key(m.key), grant=m.grant, expected=m.expected, found=m.found)
    )


def _reserve(m: Any) -> peer_pb2.SenderMessage:
    spec = m.spec
    return peer_pb2.SenderMessage(
        reserve=peer_pb2.Reserve(key=key(spec.key), request=request(spec), output=spec.output, given_up=m.given_up)
    )


def _commit(m: Any) -> peer_pb2.SenderMessage:
    return peer_pb2.SenderMessage(
        commit=peer_pb2.Commit(
            key=key(m.key),
            grant=m.grant,
            first=sampled_token(m.first),
            bytes=m.bytes,
            checksum=m.checksum,
        )
    )


_TO_ROUTER: dict[type, Callable[[Any], router_pb2.WorkerMessage]] = {
    said.Outputs: _outputs,
    said.Busy: _busy,
    said.Failed: _failed,
    said.Released: lambda m: router_pb2.WorkerMessage(released=router_pb2.Released(key=key(m.key), reason=m.reason)),
    said.Committed: _committed,
    said.Fenced: lambda m: router_pb2.WorkerMessage(fenced=router_pb2.Fenced(key=key(m.key))),
}
_TO_SENDER: dict[type, Callable[[Any], peer_pb2.ReceiverMessage]] = {
    said.Granted: _granted,
    said.BadChecksum: _bad_checksum,
    said.NoRoom: lambda m: peer_pb2.ReceiverMessage(no_room=peer_pb2.NoRoom(key=key(m.key), reason=m.reason)),
    said.PeerCommitted: lambda m: peer_pb2.ReceiverMessage(
        committed=peer_pb2.PeerCommitted(key=key(m.key), grant=m.grant)
    ),
    said.Expired: lambda m: peer_pb2.ReceiverMessage(expired=peer_pb2.Expired(key=key(m.key), grant=m.grant)),
    said.PeerFenced: lambda m: peer_pb2.ReceiverMessage(fenced=peer_pb2.PeerFenced(key=key(m.key))),
}
_TO_RECEIVER: dict[type, Callable[[Any], peer_pb2.SenderMessage]] = {
    said.Reserve: _reserve,
    said.Commit: _commit,
    said.Abort: lambda m: peer_pb2.SenderMessage(abort=peer_pb2.Abort(key=key(m.key), grant=m.grant)),
    said.SenderHeartbeat: lambda m: peer_pb2.SenderMessage(heartbeat=peer_pb2.SenderHeartbeat(grants=m.grants)),
}
