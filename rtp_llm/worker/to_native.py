"""Wire messages as the native machines take them: one function per kind of speaker. Prompts become native vectors here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rtp_llm._native import _engine
from rtp_llm.errors import ProtocolError
from rtp_llm.wire.key import WorkerKey
from rtp_llm.wire.v1 import peer_pb2, router_pb2, types_pb2

said: Any = _engine.message


def worker(key: WorkerKey) -> Any:
    return _engine.WorkerKey(key.id, key.epoch)


def key(message: types_pb2.Key) -> Any:
    return _engine.RequestKey(message.router_epoch, message.request, message.choice, message.attempt)


def spec(key_message: types_pb2.Key, request: types_pb2.Request, output: Sequence[int], *, solo: bool = False) -> Any:
    return _engine.SequenceSpec(
        key=key(key_message),
        prompt=list(request.prompt),
        output=list(output),
        sampling=sampling(request.sampling),
        cache_salt=request.cache_salt,
        priority=request.priority,
        solo=solo,
    )


def sampling(message: types_pb2.SamplingParams) -> Any:
    return _engine.SamplingParams(**{name: getattr(message, name) for name in _engine.SamplingParams.FIELDS})


def sampled_token(message: types_pb2.SampledToken) -> Any:
    return _engine.SampledToken(
        position=message.position,
        token=message.token,
        logprob=message.logprob,
        num_cached_tokens=message.cached_tokens,
        times=_engine.FirstTimes(message.times.queued, message.times.prefill),
        top_logprobs=[(entry.token, entry.logprob) for entry in message.top],
    )


def from_router(message: router_pb2.RouterMessage) -> Any | None:
    """None: a message that a later version added."""
    return _converted(message, _FROM_ROUTER)


def from_sender(message: peer_pb2.SenderMessage) -> Any | None:
    return _converted(message, _FROM_SENDER)


def from_receiver(message: peer_pb2.ReceiverMessage) -> Any | None:
    return _converted(message, _FROM_RECEIVER)


def _converted(message: Any, table: dict[str, Callable[[Any], Any]]) -> Any | None:
    """
    Raises:
        ProtocolError: a value that the native field can't hold.
    """
    kind = message.WhichOneof("message")
    convert = table.get(kind)
    try:
        return None if convert is None else convert(getattr(message, kind))
    except (TypeError, ValueError, RuntimeError) as error:  # pybind11's, by what it was asked to cast
        raise ProtocolError(f"{kind}: {error!s:.200}") from error


def _submit(m: router_pb2.Submit) -> Any:
    alone = m.alone or m.solo or not m.HasField("receiver")
    return said.Submit(
        spec=spec(m.key, m.request, m.output, solo=m.solo),
        receiver=None if alone else _engine.WorkerKey(m.receiver.id, m.receiver.epoch),
        receiver_address=m.receiver_address,
    )


def _attach(m: router_pb2.Attach) -> Any:
    entries = [
        said.AttachEntry(key=key(entry.key), next_position=entry.next_position, role=int(entry.role))
        for entry in m.entries
    ]
    return said.Attach(entries=entries)


def _commit(m: peer_pb2.Commit) -> Any:
    return said.Commit(
        key=key(m.key),
        grant=m.grant,
        first=sampled_token(m.first),
        bytes=m.bytes,
        checksum=m.checksum,
    )


def _granted(m: peer_pb2.Granted) -> Any:
    return said.Granted(key=key(m.key), grant=m.grant, prefix_tokens=m.prefix_tokens, lease=m.lease_seconds)


_FROM_ROUTER: dict[str, Callable[[Any], Any]] = {
    "submit": _submit,
    "cancel": lambda m: said.Cancel(key=key(m.key)),
    "fence": lambda m: said.Fence(key=key(m.key)),
    "attach": _attach,
    "draining_acknowledged": lambda m: said.DrainingAcknowledged(),
}
_FROM_SENDER: dict[str, Callable[[Any], Any]] = {
    "reserve": lambda m: said.Reserve(spec=spec(m.key, m.request, m.output), given_up=m.given_up),
    "commit": _commit,
    "abort": lambda m: said.Abort(key=key(m.key), grant=m.grant),
    "heartbeat": lambda m: said.SenderHeartbeat(grants=list(m.grants)),
}
_FROM_RECEIVER: dict[str, Callable[[Any], Any]] = {
    "granted": _granted,
    "no_room": lambda m: said.NoRoom(key=key(m.key), reason=m.reason),
    "committed": lambda m: said.PeerCommitted(key=key(m.key), grant=m.grant),
    "expired": lambda m: said.Expired(key=key(m.key), grant=m.grant),
    "bad_checksum": lambda m: said.BadChecksum(key=key(m.key), grant=m.grant, expected=m.expected, found=m.found),
    "fenced": lambda m: said.PeerFenced(key=key(m.key)),
}
