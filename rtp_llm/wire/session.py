"""The sessions by name: router ↔ worker and sender ↔ receiver, both ends of each. Start here.

    end                    made by                          hears                            sends
    router, of a worker    WorkerSession(…).start()         SessionEvents of WorkerMessage   RouterMessage
    worker, of a router    router_acceptor(…)               SessionEvents of RouterMessage   WorkerMessage
    S, of its receiver     ReceiverSession(…).start()       SessionEvents of ReceiverMessage SenderMessage
    R, of its senders      sender_acceptor(…)               SessionEvents of SenderMessage   ReceiverMessage

All are `Endpoint`s (endpoint.py has the life of a session, the events and their order). `send` fills in both epochs; a message
between other epochs ends the connection. What is sent into a broken session is lost: after `connected(resumed=True)` a router
sends one Attach, then a Fence for each key in JUDGE; machines repeat the rest by their own silences.

For a router, per worker of the membership:

    session = WorkerSession(worker, address, router_id=…, router_epoch=…, events=mine, timing=SessionTiming.of(settings))
    session.start()
    session.send(pb.RouterMessage(submit=…))     # False: not connected, nothing was sent
    await session.close()                        # the worker has left, or this router stops
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc

from rtp_llm.errors import ProtocolError, RtpLlmError, UnavailableError
from rtp_llm.pool_state import ApplicationState
from rtp_llm.wire.client import ClientEndpoint
from rtp_llm.wire.convert import application_state_message, application_state_of, control_error_of
from rtp_llm.wire.credentials import NO_CREDENTIALS, Credentials
from rtp_llm.wire.endpoint import (
    CHANNEL_OPTIONS,
    Dialect,
    SessionEvents,
    SessionTiming,
    describe,
)
from rtp_llm.wire.key import WorkerKey
from rtp_llm.wire.server import AcceptedEndpoint, Acceptor, SessionServer
from rtp_llm.wire.v1 import peer_pb2, router_pb2
from rtp_llm.wire.v1.peer_pb2 import PeerHello, ReceiverHeartbeat, ReceiverMessage, SenderMessage
from rtp_llm.wire.v1.router_pb2 import (
    ControlReply,
    ControlRequest,
    EndedWorkersNotice,
    EndedWorkersReply,
    Heartbeat,
    MetricsReply,
    MetricsRequest,
    ResetPrefixCacheReply,
    ResetPrefixCacheRequest,
    RouterHello,
    RouterMessage,
    WorkerHello,
    WorkerMessage,
)
from rtp_llm.wire.v1.types_pb2 import Refused
from rtp_llm.wire.v1.types_pb2 import WorkerKey as WorkerKeyMessage
from rtp_llm.wire.versions import SPOKEN, Hello, Versions

__all__ = [
    "ControlStep",
    "ReceiverSession",
    "RouterEndpoint",
    "SenderEndpoint",
    "SessionEvents",
    "SessionServer",
    "SessionTiming",
    "WorkerSession",
    "control_method",
    "control_worker",
    "ended_workers_method",
    "metrics_method",
    "reset_prefix_cache",
    "reset_prefix_cache_method",
    "router_acceptor",
    "router_metrics",
    "sender_acceptor",
    "tell_router",
]

WORKER_SERVICE: str = router_pb2.DESCRIPTOR.services_by_name["Worker"].full_name
DIGEST_BYTES = 16  # of a prompt, between routers
ROUTER_SERVICE: str = router_pb2.DESCRIPTOR.services_by_name["Router"].full_name
PEER_SERVICE: str = peer_pb2.DESCRIPTOR.services_by_name["Peer"].full_name

RouterEndpoint = AcceptedEndpoint[WorkerMessage, RouterMessage]
SenderEndpoint = AcceptedEndpoint[ReceiverMessage, SenderMessage]


def _worker_of(hello: WorkerHello | PeerHello) -> WorkerKey:
    return WorkerKey(hello.worker.id, hello.worker.epoch)


_ROUTER_END = Dialect(
    service=WORKER_SERVICE,
    outgoing=RouterMessage,
    incoming=WorkerMessage,
    own_epoch="router_epoch",
    other_epoch="worker_epoch",
    swallowed=frozenset({"heartbeat"}),
    identity=lambda message: _worker_of(message.hello),
)
_WORKER_END = Dialect(
    service=WORKER_SERVICE,
    outgoing=WorkerMessage,
    incoming=RouterMessage,
    own_epoch="worker_epoch",
    other_epoch="router_epoch",
    swallowed=frozenset({"heartbeat"}),
    identity=lambda message: WorkerKey(message.hello.router_id, message.router_epoch),
)
_SENDER_END = Dialect(
    service=PEER_SERVICE,
    outgoing=SenderMessage,
    incoming=ReceiverMessage,
    own_epoch="sender_epoch",
    other_epoch="receiver_epoch",
    swallowed=frozenset({"heartbeat"}),
    identity=lambda message: _worker_of(message.hello),
)
_RECEIVER_END = Dialect(
    service=PEER_SERVICE,
    outgoing=ReceiverMessage,
    incoming=SenderMessage,
    own_epoch="receiver_epoch",
    other_epoch="sender_epoch",
    swallowed=frozenset(),  # S's heartbeats renew leases
    identity=lambda message: _worker_of(message.hello),
)


class WorkerSession(ClientEndpoint[RouterMessage, WorkerMessage]):
    """A router's end of its session with one worker. `worker` as the membership names it (epoch 0: not known); `address` is the
    worker's session server; `router_id` is unique among live routers, `router_epoch` drawn at the router's start.

    `connected` gets the WorkerMessage that holds the worker's hello (pool, model, limits, numerics_id, peer_address). A worker
    that is lost is tried further until close(); it comes back by `connected(resumed=False)`: its old keys stay lost.
    """

    def __init__(
        self,
        worker: WorkerKey,
        address: str,
        *,
        router_id: str,
        router_epoch: int,
        events: SessionEvents[WorkerMessage],
        timing: SessionTiming,
        credentials: Credentials = NO_CREDENTIALS,
    ) -> None:
        hello = RouterHello(router_id=router_id, expected=WorkerKeyMessage(id=worker.id))
        SPOKEN.write(hello)
        super().__init__(
            _ROUTER_END,
            address,
            worker,
            router_epoch,
            hello=lambda: RouterMessage(hello=hello),
            events=events,
            timing=timing,
            heartbeat=lambda number: RouterMessage(heartbeat=Heartbeat(sequence=number)),
            credentials=credentials,
        )

    async def metrics(self, timeout_s: float = 2.0) -> str:
        """The worker's metrics in Prometheus' text form, over the session's own channel.

        Raises:
            UnavailableError: no connection, or no answer within `timeout_s`.
        """
        if self._channel is None or not self.is_connected:
            raise UnavailableError(f"worker {self.other.id} is not connected")
        return await _metrics(self._channel, WORKER_SERVICE, self.other.id, self._credentials, timeout_s)


async def router_metrics(id: str, address: str, credentials: Credentials, timeout_s: float = 2.0) -> str:
    """The metrics of another router in Prometheus' text form.

    Raises:
        UnavailableError: no connection, or no answer within `timeout_s`.
    """
    async with credentials.channel(address, CHANNEL_OPTIONS) as channel:
        return await _metrics(channel, ROUTER_SERVICE, id, credentials, timeout_s)


async def _metrics(channel: grpc.aio.Channel, service: str, id: str, credentials: Credentials, timeout_s: float) -> str:
    call = channel.unary_unary(f"/{service}/Metrics", MetricsRequest.SerializeToString, MetricsReply.FromString)
    try:
        reply: MetricsReply = await call(MetricsRequest(), timeout=timeout_s, metadata=credentials.metadata)
    except grpc.RpcError as error:
        raise UnavailableError(f"metrics of {id}: {describe(error)}") from error
    return reply.text.decode()


async def tell_router(id: str, address: str, credentials: Credentials, digest: bytes, timeout_s: float = 2.0) -> None:
    """That the prompt of this digest has ended workers.

    Raises:
        UnavailableError: no connection, or no answer within `timeout_s`.
    """
    async with credentials.channel(address, CHANNEL_OPTIONS) as channel:
        call = channel.unary_unary(
            f"/{ROUTER_SERVICE}/EndedWorkers", EndedWorkersNotice.SerializeToString, EndedWorkersReply.FromString
        )
        try:
            await call(EndedWorkersNotice(digest=digest), timeout=timeout_s, metadata=credentials.metadata)
        except grpc.RpcError as error:
            raise UnavailableError(f"telling {id}: {describe(error)}") from error


@dataclass(frozen=True, kw_only=True)
class ControlStep:
    """What a worker is asked for an administrator: to look at a directory of weights, to become as `state` says."""

    operation: int  # drawn by the router for all steps of one operation
    check_weights: str = ""
    state: ApplicationState | None = None
    pause_timeout_s: float = 0.0
    is_last: bool = False


async def control_worker(
    id: str, address: str, credentials: Credentials, step: ControlStep, timeout_s: float
) -> tuple[ApplicationState, RtpLlmError | None]:
    """The state that the worker has afterwards, and why it has not done what it was asked. Over a channel of its own, as an
    update ends the worker's sessions.

    Raises:
        UnavailableError: no connection, or no answer within `timeout_s`.
        ProtocolError: the worker has a state that this version doesn't know.
    """
    request = ControlRequest(
        operation=step.operation,
        check_weights=step.check_weights,
        timeout_s=step.pause_timeout_s,
        last=step.is_last,
        state=None if step.state is None else application_state_message(step.state),
    )
    async with credentials.channel(address, CHANNEL_OPTIONS) as channel:
        call = channel.unary_unary(
            f"/{WORKER_SERVICE}/Control", ControlRequest.SerializeToString, ControlReply.FromString
        )
        try:
            reply: ControlReply = await call(request, timeout=timeout_s, metadata=credentials.metadata)
        except grpc.RpcError as error:
            raise UnavailableError(f"worker {id}: {describe(error)}") from error
    return application_state_of(reply.state), control_error_of(reply)


async def reset_prefix_cache(id: str, address: str, credentials: Credentials, timeout_s: float) -> None:
    """
    Raises:
        UnavailableError: no connection, or the worker has not done it within `timeout_s`.
    """
    async with credentials.channel(address, CHANNEL_OPTIONS) as channel:
        call = channel.unary_unary(
            f"/{WORKER_SERVICE}/ResetPrefixCache",
            ResetPrefixCacheRequest.SerializeToString,
            ResetPrefixCacheReply.FromString,
        )
        try:
            await call(ResetPrefixCacheRequest(), timeout=timeout_s, metadata=credentials.metadata)
        except grpc.RpcError as error:
            raise UnavailableError(f"worker {id}: {describe(error)}") from error


def router_acceptor(
    worker_epoch: int,
    hello: Callable[[], WorkerHello],
    accept: Callable[[RouterHello, RouterEndpoint], SessionEvents[RouterMessage]],
    timing: SessionTiming,
) -> Acceptor[WorkerMessage, RouterMessage]:
    """A worker's ends of its sessions with routers. Routers that speak no version of the protocol which this worker does, or
    that mean another worker, are refused."""

    def answer(message: RouterMessage) -> WorkerMessage:
        own = hello()
        _check_meeting(message.hello, message.hello.expected, own.worker.id)
        SPOKEN.write(own)
        return WorkerMessage(hello=own)

    return Acceptor(
        _WORKER_END,
        worker_epoch,
        hello=answer,
        refusal=lambda reason: WorkerMessage(refused=Refused(reason=reason)),
        heartbeat=lambda number: WorkerMessage(heartbeat=Heartbeat(sequence=number)),
        accept=lambda message, endpoint: accept(message.hello, endpoint),
        timing=timing,
    )


def metrics_method(text: Callable[[], bytes]) -> grpc.RpcMethodHandler[Any, Any]:
    """The Metrics call of a worker's or router's service; `text()` is asked on the loop."""

    async def answer(request: MetricsRequest, context: object) -> MetricsReply:
        return MetricsReply(text=text())

    return grpc.unary_unary_rpc_method_handler(answer, MetricsRequest.FromString, MetricsReply.SerializeToString)


def control_method(asked: Callable[[ControlRequest], Awaitable[ControlReply]]) -> grpc.RpcMethodHandler[Any, Any]:
    """The Control call of a worker's service; `asked(request)` runs on the loop."""

    async def answer(request: ControlRequest, context: object) -> ControlReply:
        return await asked(request)

    return grpc.unary_unary_rpc_method_handler(answer, ControlRequest.FromString, ControlReply.SerializeToString)


def reset_prefix_cache_method(reset: Callable[[], None]) -> grpc.RpcMethodHandler[Any, Any]:
    """The ResetPrefixCache call of a worker's service; `reset()` is called on the loop."""

    async def answer(request: ResetPrefixCacheRequest, context: object) -> ResetPrefixCacheReply:
        reset()
        return ResetPrefixCacheReply()

    return grpc.unary_unary_rpc_method_handler(
        answer, ResetPrefixCacheRequest.FromString, ResetPrefixCacheReply.SerializeToString
    )


def ended_workers_method(hear: Callable[[bytes], None]) -> grpc.RpcMethodHandler[Any, Any]:
    """The EndedWorkers call of a router's service; `hear(digest)` is called on the loop."""

    async def answer(request: EndedWorkersNotice, context: object) -> EndedWorkersReply:
        if len(request.digest) != DIGEST_BYTES:
            raise ProtocolError(f"a digest has {DIGEST_BYTES} bytes, got {len(request.digest)}")
        hear(request.digest)
        return EndedWorkersReply()

    return grpc.unary_unary_rpc_method_handler(
        answer, EndedWorkersNotice.FromString, EndedWorkersReply.SerializeToString
    )


class ReceiverSession(ClientEndpoint[SenderMessage, ReceiverMessage]):
    """S's end of its session with a receiver. `hello()` describes this worker (layout, numerics_id, transport address), asked
    for each connection. `heartbeat_due()` is called every heartbeat_s: the machine that knows which grants S counts on sends
    the heartbeat that lists them, and R renews their leases.

    A worker that can't meet (version, layout, identity) answers `refused`, which names what differs: S goes on without it.
    """

    def __init__(
        self,
        receiver: WorkerKey,
        address: str,
        *,
        sender_epoch: int,
        hello: Callable[[], PeerHello],
        heartbeat_due: Callable[[], None],
        events: SessionEvents[ReceiverMessage],
        timing: SessionTiming,
        credentials: Credentials = NO_CREDENTIALS,
    ) -> None:
        self._own = hello
        super().__init__(
            _SENDER_END,
            address,
            receiver,
            sender_epoch,
            hello=self._greeting,
            events=events,
            timing=timing,
            heartbeat=lambda number: heartbeat_due(),
            credentials=credentials,
        )

    def ask_hello(self) -> bool:
        """Send a hello again. R answers with one that arrives as a message and holds a fresh nonce."""
        return self.send(self._greeting())

    def _greeting(self) -> SenderMessage:
        hello = PeerHello()
        hello.CopyFrom(self._own())
        SPOKEN.write(hello)
        hello.expected.id = self.other.id
        return SenderMessage(hello=hello)


def sender_acceptor(
    receiver: WorkerKey,
    hello: Callable[[PeerHello], PeerHello],
    accept: Callable[[PeerHello, SenderEndpoint], SessionEvents[SenderMessage]],
    timing: SessionTiming,
) -> Acceptor[ReceiverMessage, SenderMessage]:
    """R's ends of its sessions with senders. `hello(other)` answers each hello of a version spoken here, to the right worker,
    with this worker's own and a fresh nonce, or raises ProtocolError where the two can't meet. A hello within a session
    reaches `message`."""

    def answer(message: SenderMessage) -> ReceiverMessage:
        _check_meeting(message.hello, message.hello.expected, receiver.id)
        own = hello(message.hello)
        SPOKEN.write(own)
        return ReceiverMessage(hello=own)

    return Acceptor(
        _RECEIVER_END,
        receiver.epoch,
        hello=answer,
        refusal=lambda reason: ReceiverMessage(refused=Refused(reason=reason)),
        heartbeat=lambda number: ReceiverMessage(heartbeat=ReceiverHeartbeat(sequence=number)),
        accept=lambda message, endpoint: accept(message.hello, endpoint),
        timing=timing,
    )


def _check_meeting(hello: Hello, expected: WorkerKeyMessage, own_id: str) -> None:
    SPOKEN.shared(Versions.of(hello))
    if expected.id and expected.id != own_id:
        raise ProtocolError(f"worker {own_id} answers here, {expected.id} was expected")
