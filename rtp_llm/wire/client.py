"""ClientEndpoint: the end of a session that connects, and connects again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

import grpc

from rtp_llm.errors import ProtocolError
from rtp_llm.wire.credentials import Credentials
from rtp_llm.wire.endpoint import (
    CHANNEL_OPTIONS,
    Connection,
    Dialect,
    Endpoint,
    InT,
    Life,
    OutT,
    SessionEvents,
    SessionTiming,
    describe,
    log,
)
from rtp_llm.wire.key import WorkerKey
from rtp_llm.wire.versions import SPOKEN, Versions
from rtp_llm.within import within

FIRST_BACKOFF_S = 0.05
LAST_BACKOFF_S = 1.0


class ClientEndpoint(Endpoint[OutT, InT]):
    """Connects to `address` ("host:port") from `start()` until `close()`: at once after a break (of a connection that stood for
    a second), then backing off from 50 ms to 1 s, also while the other end is lost. Each try is a channel of its own: gRPC's
    own backoff takes no part.

    `hello()` makes this end's hello, anew for each connection. `credentials`: what the server asks for.
    """

    def __init__(
        self,
        dialect: Dialect[OutT, InT],
        address: str,
        other: WorkerKey,
        own_epoch: int,
        hello: Callable[[], OutT],
        events: SessionEvents[InT],
        timing: SessionTiming,
        heartbeat: Callable[[int], OutT | None],
        credentials: Credentials,
    ) -> None:
        super().__init__(dialect, own_epoch, events, timing, heartbeat)
        self._credentials = credentials
        self.address = address
        self.other = other
        self._hello = hello
        self._channel: grpc.aio.Channel | None = None
        self._task: asyncio.Task[None] | None = None
        self._failure = ""
        self._is_known_to_fail = False

    def start(self) -> None:
        """Begin to connect. The time to be lost runs from here."""
        self._last_message = self._loop.time()
        self._watch()
        self._task = asyncio.ensure_future(self._keep_connected())

    async def close(self) -> None:
        """End the session; no event follows. Idempotent."""
        self._stop()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _stop(self) -> None:
        self._life = Life.CLOSED
        self._unwatch()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.end("closed by this end")

    @property
    def failure(self) -> str:
        """Why the last try to connect failed; empty while connected, and before the first try has ended."""
        return self._failure

    @property
    def _is_closed(self) -> bool:
        return self._life is Life.CLOSED

    async def _keep_connected(self) -> None:
        backoff = 0.0
        while not self._is_closed:
            began = self._loop.time()
            try:
                spoke = await self._connect()
            except Exception as error:  # of ours, or one that gRPC has never raised before: the next try may go well
                log.exception("connecting to %s at %s failed", self.other, self.address)
                self._failed(describe(error))
                spoke = False
            if spoke and self._loop.time() - began >= LAST_BACKOFF_S:
                backoff = 0.0
                continue
            backoff = min(max(2 * backoff, FIRST_BACKOFF_S), LAST_BACKOFF_S)
            if not self._is_closed:
                await asyncio.sleep(backoff)

    async def _connect(self) -> bool:
        """One connection from hello to end. Whether it came as far as a hello from the other end."""
        self._channel = self._credentials.channel(self.address, CHANNEL_OPTIONS)
        try:
            # Without a serializer, gRPC sends bytes as they are: messages are serialized, and measured, in send().
            open_stream: Any = self._channel.stream_stream(
                f"/{self._dialect.service}/Session", None, self._dialect.incoming.FromString
            )
            call = open_stream(metadata=self._credentials.metadata)
            # Iterated: call.read() drops what has arrived already once a write has failed, as it does when the other end has
            # ended the call.
            responses = aiter(call)
            answer = await self._greet(call, responses)
            if answer is None:
                return False
            self._failure = ""
            self._is_known_to_fail = True  # from here on, broken and lost say what there is to say
            connection = Connection(lambda: anext(responses, None), call.write)
            reason = await self._speak(connection, answer)
            log.info("session with %s at %s: %s", self.other, self.address, reason)
            return True
        finally:
            channel, self._channel = self._channel, None
            await channel.close()

    async def _greet(self, call: Any, responses: Any) -> InT | None:
        """Exchange hellos. None: no connection this time."""
        try:
            answer = await within(self._timing.lost_after_s, self._exchange(call, responses))
        except (grpc.RpcError, asyncio.InvalidStateError, asyncio.TimeoutError, ProtocolError) as error:
            self._failed(await self._reason(call, error))
            if call.done() and await call.code() is grpc.StatusCode.UNAUTHENTICATED:
                self._give_up(await call.details())
            elif not self._judge_silence() and await self._is_refused():
                self._lose(f"connection to {self.address} refused")
            return None
        if answer.WhichOneof("message") == "refused":
            self._give_up(cast(Any, answer).refused.reason)
            return None
        try:
            SPOKEN.shared(Versions.of(cast(Any, answer).hello))
        except ProtocolError as error:
            self._give_up(error.message)
            return None
        if (found := self._dialect.identity(answer)).id != self.other.id:
            self._give_up(f"worker {found.id} answers at {self.address}, expected {self.other.id}")
            return None
        return answer

    def _failed(self, reason: str) -> None:
        """A try to connect has failed. Said once of an end that was never met: it is the first thing that goes wrong between
        hosts, by an address that can't be reached from here, or a firewall."""
        self._failure = reason
        level = logging.DEBUG if self._is_known_to_fail else logging.WARNING
        self._is_known_to_fail = True
        log.log(level, "%s at %s can't be reached, it is tried further: %s", self.other, self.address, reason)

    async def _reason(self, call: Any, error: BaseException) -> str:
        if isinstance(error, asyncio.TimeoutError):
            return f"no answer within {self._timing.lost_after_s:g} s"
        if call.done() and not isinstance(error, ProtocolError):  # gRPC's own words
            return f"{(await call.code()).name}: {await call.details()}"
        return describe(error)

    async def _exchange(self, call: Any, responses: Any) -> InT:
        await call.write(self._stamped(self._hello()))
        answer: InT | None = await anext(responses, None)
        if answer is None:
            raise ProtocolError(f"{self.address} closed the session before its hello")
        if (kind := answer.WhichOneof("message")) not in ("hello", "refused"):
            raise ProtocolError(f"{self.address} sent {kind} before its hello")
        return answer

    async def _is_refused(self) -> bool:
        """Whether nothing listens at the address, asked of TCP itself: gRPC tells only in English."""
        host, _, port = self.address.rpartition(":")
        try:
            _, writer = await within(self._timing.lost_after_s, asyncio.open_connection(host.strip("[]"), int(port)))
        except ConnectionRefusedError:
            return True
        except (OSError, asyncio.TimeoutError):
            return False
        writer.close()
        return False

    def _give_up(self, reason: str) -> None:
        log.warning("session with %s at %s refused: %s", self.other, self.address, reason)
        if self._life is Life.LIVE:
            self._lose(reason)
        self._stop()
        self._events.refused(reason)
