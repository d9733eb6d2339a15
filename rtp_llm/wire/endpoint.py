"""Endpoint: one end of a session, whatever it talks about. Both ends, router's and peer's, are built from it.

A session outlives its connections. Its life, as both ends see it:

    NEW ──connected──▶ LIVE ──silence, refused reconnect, new epoch──▶ LOST ──connected(resumed=False)──▶ LIVE
                        │ ▲
                 broken ▼ │ connected(resumed=True)          (a broken connection alone loses nothing)

Thread rule: one event loop; every method is called on it, every event is delivered on it, never from inside `send`.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

import grpc
from google.protobuf.message import Message

from rtp_llm.config import HandoverSettings
from rtp_llm.wire.key import WorkerKey
from rtp_llm.wire.versions import SPOKEN, Versions

log = logging.getLogger("rtp_llm.wire")

# Unsent bytes above which a connection is given up; Attach repairs what is lost with it.
MAX_QUEUED_BYTES = 64 << 20
# No HTTP proxy between workers, prompts of any length, and no connection state shared between channels.
CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
]

OutT = TypeVar("OutT", bound=Message)
InT = TypeVar("InT", bound=Message)
_In = TypeVar("_In", bound=Message, contravariant=True)


@dataclass(frozen=True)
class SessionTiming:
    """Seconds on the monotonic clock."""

    heartbeat_s: float = 0.5
    lost_after_s: float = 2.5

    @classmethod
    def of(cls, settings: HandoverSettings) -> SessionTiming:
        return cls(settings.heartbeat_s, settings.lost_after_s)


class SessionEvents(Protocol[_In]):
    """What the owner of an endpoint hears. Called on the loop; must not block.

    Order: connected, message…, broken, then connected(resumed=True) or lost. Every connected is followed by one broken before
    the next connected or lost; lost comes once a life.
    """

    def connected(self, hello: _In, *, resumed: bool) -> None:
        """A connection stands and `send` works. `hello` is the other end's whole message. resumed: the same epoch as before
        and not lost in between (a router sends Attach now); else a new life: nothing of an earlier one is valid."""

    def message(self, message: _In) -> None:
        """A message whose epochs are right, heartbeats and the first hello excepted."""

    def broken(self, reason: str) -> None:
        """The connection ended. What was sent and not answered may be lost; the session isn't."""

    def lost(self, reason: str) -> None:
        """The other end is lost: silent for `lost_after_s`, its reconnect refused, or another epoch came up. The endpoint
        stays usable: `connected(resumed=False)` follows if it comes back."""

    def refused(self, reason: str) -> None:
        """The other end won't talk to this one (version, layout, identity). Final: the endpoint is closed."""


@dataclass(frozen=True)
class Dialect(Generic[OutT, InT]):
    """What the two kinds of session differ in, seen from one end."""

    service: str
    outgoing: type[OutT]
    incoming: type[InT]
    own_epoch: str  # field of both messages that holds this end's epoch
    other_epoch: str
    swallowed: frozenset[str]  # messages that only prove life
    identity: Callable[[InT], WorkerKey]  # of a hello's sender; routers have ids and epochs too


class Life(enum.Enum):
    NEW = "new"
    LIVE = "live"
    LOST = "lost"
    CLOSED = "closed"


class Connection:
    """One gRPC stream of a session, with what waits to be written to it."""

    def __init__(self, read: Callable[[], Awaitable[Any]], write: Callable[[bytes], Awaitable[Any]]) -> None:
        self.read = read
        self.write = write
        self.queue: deque[bytes] = deque()
        self.queued_bytes = 0  # sum over queue
        self.heartbeat_due = False
        self.wake = asyncio.Event()
        self.flushed = asyncio.Event()  # nothing waits, nothing is being written
        self.flushed.set()
        self.write_has_failed = False
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def put(self, data: bytes) -> None:
        self.queue.append(data)
        self.queued_bytes += len(data)
        self.flushed.clear()
        self.wake.set()

    def end(self, reason: str) -> None:
        """Idempotent: the first reason stays."""
        if not self.ended.done():
            self.ended.set_result(reason)


class Endpoint(Generic[OutT, InT]):
    """One end of a session. `heartbeat(n)` makes the n-th heartbeat message at the moment when it is written, or returns None:
    then its owner sends one itself."""

    def __init__(
        self,
        dialect: Dialect[OutT, InT],
        own_epoch: int,
        events: SessionEvents[InT],
        timing: SessionTiming,
        heartbeat: Callable[[int], OutT | None],
    ) -> None:
        self._dialect = dialect
        self._own_epoch = own_epoch
        self._events = events
        self._timing = timing
        self._heartbeat = heartbeat
        self._loop = asyncio.get_running_loop()
        self._connection: Connection | None = None
        self._life = Life.NEW
        self._other_epoch = 0
        self._protocol = 0
        self._last_message = self._loop.time()
        self._watchdog: asyncio.TimerHandle | None = None

    @property
    def is_connected(self) -> bool:
        return self._connection is not None

    @property
    def other_epoch(self) -> int:
        """The other end's epoch, 0 before the first hello."""
        return self._other_epoch

    @property
    def protocol(self) -> int:
        """The version that both ends speak, 0 before the first hello."""
        return self._protocol

    def send(self, message: OutT) -> bool:
        """Stamp `message` with both epochs and queue it. False: there is no connection, or its queue is full and it was given
        up; then the message is dropped, and Attach or a repeat is what brings it again. Never blocks, fires no event."""
        connection = self._connection
        if connection is None or connection.ended.done():
            return False
        data = self._stamped(message)
        if connection.queue and connection.queued_bytes + len(data) > MAX_QUEUED_BYTES:
            connection.end(f"{connection.queued_bytes} bytes wait to be sent, the limit is {MAX_QUEUED_BYTES}")
            return False
        connection.put(data)
        return True

    def hang_up(self, reason: str) -> None:
        """End the connection; what waits to be written is lost. The session stands."""
        if self._connection is not None:
            self._connection.end(reason)

    async def finish(self, timeout_s: float) -> None:
        """Write what waits, at most so long, then end the connection; the other end gets it all before it sees the end."""
        connection = self._connection
        if connection is None:
            return
        flushed = asyncio.ensure_future(connection.flushed.wait())
        ends: list[asyncio.Future[Any]] = [flushed, connection.ended]
        await asyncio.wait(ends, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        flushed.cancel()
        connection.end("this end leaves")

    # --- For the client and the server end.

    def _stamped(self, message: OutT) -> bytes:
        setattr(message, self._dialect.own_epoch, self._own_epoch)
        setattr(message, self._dialect.other_epoch, self._other_epoch)
        return message.SerializeToString()

    async def _speak(self, connection: Connection, hello: InT) -> str:
        """Run the session over `connection` until it ends; returns why. `hello` is what the other end said first.
        A callback that fails ends the connection, not the session."""
        tasks: list[asyncio.Future[None]] = []
        try:
            self._adopt(connection, hello)
            tasks += [asyncio.ensure_future(part(connection)) for part in (self._read, self._write, self._beat)]
            ends: list[asyncio.Future[Any]] = [*tasks, connection.ended]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        except Exception as error:
            log.error("session callback failed", exc_info=error)
            connection.end(describe(error))
        finally:
            for task in tasks:
                task.cancel()
            connection.end(_first_failure(tasks))
            self._leave(connection)
            await asyncio.gather(*tasks, return_exceptions=True)
        return connection.ended.result()

    def _adopt(self, connection: Connection, hello: InT) -> None:
        if self._connection is not None:  # the other end reconnected before this end saw the break
            self._connection.end("replaced by a new connection")
            self._leave(self._connection)
        self._judge_silence()
        epoch = self._dialect.identity(hello).epoch
        if self._life is Life.LIVE and epoch != self._other_epoch:
            self._lose(f"a new epoch {epoch:016x} answers instead of {self._other_epoch:016x}")
        resumed = self._life is Life.LIVE
        self._protocol = SPOKEN.shared(Versions.of(cast(Any, hello).hello))
        self._life = Life.LIVE
        self._other_epoch = epoch
        self._connection = connection
        self._last_message = self._loop.time()
        self._watch()
        self._events.connected(hello, resumed=resumed)

    def _leave(self, connection: Connection) -> None:
        """`connection` has ended. Says broken, once."""
        if self._connection is connection:
            self._connection = None
            self._events.broken(connection.ended.result())

    def _lose(self, reason: str) -> None:
        """The other end is lost, once a life. Ends the connection."""
        if self._life in (Life.LOST, Life.CLOSED):
            return
        if self._connection is not None:
            self._connection.end(reason)
            self._leave(self._connection)
        self._life = Life.LOST
        self._unwatch()
        self._events.lost(reason)

    def _judge_silence(self) -> bool:
        """Whether the other end is lost by now. Asked before each event, so that a process that was stopped judges its own
        past first."""
        silence = self._loop.time() - self._last_message
        if self._life in (Life.NEW, Life.LIVE) and silence >= self._timing.lost_after_s:
            self._lose(f"silent for {silence:.1f} s")
        return self._life is Life.LOST

    def _watch(self) -> None:
        """Keep one timer at the moment when silence becomes loss."""
        self._unwatch()
        self._watchdog = self._loop.call_at(self._last_message + self._timing.lost_after_s, self._on_watchdog)

    def _unwatch(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def _on_watchdog(self) -> None:
        self._watchdog = None
        if not self._judge_silence():
            self._watch()

    async def _read(self, connection: Connection) -> None:
        try:
            while (message := await connection.read()) is not None:
                if connection.ended.done() or self._judge_silence():
                    return
                self._last_message = self._loop.time()
                if not self._receive(message, connection):
                    return
        except Exception as error:
            if not (connection.write_has_failed and is_transport_error(error)):
                raise
            # All has been read, and gRPC's last word is of the write.
        connection.end("closed by the other end")

    def _receive(self, message: InT, connection: Connection) -> bool:
        """Check epochs and pass the message on. False: the connection is over."""
        own, other = getattr(message, self._dialect.own_epoch), getattr(message, self._dialect.other_epoch)
        kind = message.WhichOneof("message")
        if (own, other) != (self._own_epoch, self._other_epoch) and kind != "hello":
            connection.end(
                f"{kind} from epoch {other:016x} to epoch {own:016x}, this session is between "
                f"{self._other_epoch:016x} and {self._own_epoch:016x}"
            )
            log.error("session with %016x: %s", self._other_epoch, connection.ended.result())
            return False
        if kind is not None and kind not in self._dialect.swallowed:
            self._events.message(message)
        return True

    async def _write(self, connection: Connection) -> None:
        number = 0
        while True:
            await connection.wake.wait()
            connection.wake.clear()
            while connection.queue or connection.heartbeat_due:
                if connection.heartbeat_due:
                    connection.heartbeat_due = False
                    number += 1
                    message = self._heartbeat(number)
                    if message is None:
                        continue
                    data = self._stamped(message)
                else:
                    data = connection.queue.popleft()
                    connection.queued_bytes -= len(data)
                try:
                    await connection.write(data)
                except Exception as error:
                    if not is_transport_error(error):
                        raise
                    # The other end has ended the connection, or it broke: what had been said before is still read.
                    connection.write_has_failed = True
                    if await self._has_read_all(connection):
                        return
                    raise
            connection.flushed.set()

    async def _has_read_all(self, connection: Connection) -> bool:
        """Until reading has ended the connection, or brings nothing any more."""
        while not connection.ended.done():
            last = self._last_message
            await asyncio.wait([connection.ended], timeout=self._timing.heartbeat_s)
            if self._last_message == last:
                break
        return connection.ended.done()

    async def _beat(self, connection: Connection) -> None:
        while True:
            await asyncio.sleep(self._timing.heartbeat_s)
            connection.heartbeat_due = True  # at most one waits behind a slow reader
            connection.wake.set()


def _first_failure(tasks: list[asyncio.Future[None]]) -> str:
    for task in tasks:
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            if not is_transport_error(error):
                log.error("session callback failed", exc_info=error)
            return describe(error)
    return "the connection was closed"


def is_transport_error(error: BaseException) -> bool:
    """Whether gRPC says that the connection is gone, by type."""
    return isinstance(error, grpc.RpcError | grpc.aio.BaseError | asyncio.InvalidStateError | ConnectionError)


def describe(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {error}"
