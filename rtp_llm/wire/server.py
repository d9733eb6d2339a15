"""SessionServer: the gRPC server of a worker process; Acceptor: the ends of sessions that others open to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Generic

import grpc

from rtp_llm.config import is_loopback
from rtp_llm.errors import ConfigError, ProtocolError, UnavailableError
from rtp_llm.wire.credentials import NO_CREDENTIALS, Credentials, TokenCheck
from rtp_llm.wire.endpoint import (
    CHANNEL_OPTIONS,
    Connection,
    Dialect,
    Endpoint,
    InT,
    OutT,
    SessionEvents,
    SessionTiming,
    log,
)
from rtp_llm.within import within

# What gRPC logs as an error when the status of a session that has ended finds no reader: its other end has closed already.
UNREAD_STATUS = "ExecuteBatchError raised in core by servicer method [/rtp_llm.wire."
logging.getLogger("grpc._cython.cygrpc").addFilter(lambda record: not record.getMessage().startswith(UNREAD_STATUS))


class AcceptedEndpoint(Endpoint[OutT, InT]):
    """The end of a session that was opened by the other side. It stays after the other end is lost, so that a return finds it;
    `Acceptor.forget` drops it."""

    def __init__(
        self,
        dialect: Dialect[OutT, InT],
        own_epoch: int,
        timing: SessionTiming,
        heartbeat: Callable[[int], OutT | None],
        id: str,
    ) -> None:
        super().__init__(dialect, own_epoch, _NoEvents(), timing, heartbeat)
        self.id = id


class Acceptor(Generic[OutT, InT]):
    """All sessions of one kind that others open to this process, one per id of the other end.

    `hello(other)` makes this end's answer to each hello, or raises ProtocolError: the other end is refused with that text in
    `refusal(reason)`. `accept(hello, endpoint)` is called for each new (id, epoch) and returns who hears its events. A hello
    with a new epoch loses the session of the old one first.
    """

    def __init__(
        self,
        dialect: Dialect[OutT, InT],
        own_epoch: int,
        hello: Callable[[InT], OutT],
        refusal: Callable[[str], OutT],
        heartbeat: Callable[[int], OutT | None],
        accept: Callable[[InT, AcceptedEndpoint[OutT, InT]], SessionEvents[InT]],
        timing: SessionTiming,
    ) -> None:
        self._dialect = dialect
        self._own_epoch = own_epoch
        self._hello = hello
        self._refusal = refusal
        self._heartbeat = heartbeat
        self._accept = accept
        self._timing = timing
        self._endpoints: dict[str, AcceptedEndpoint[OutT, InT]] = {}

    def forget(self, endpoint: AcceptedEndpoint[OutT, InT]) -> None:
        """Drop a lost endpoint: the same other end, if it returns, is accepted as a new one. Idempotent."""
        if self._endpoints.get(endpoint.id) is endpoint:
            del self._endpoints[endpoint.id]

    def hang_up(self, reason: str) -> None:
        """End all connections. The sessions stand: the other ends connect again, and hear this end's hello as it is then."""
        for endpoint in self._endpoints.values():
            endpoint.hang_up(reason)

    async def finish(self, timeout_s: float = 1.0) -> None:
        """Write out what waits for the other ends, then end their connections. Nobody is lost any more."""
        await asyncio.gather(*(endpoint.finish(timeout_s) for endpoint in self._endpoints.values()))
        for endpoint in self._endpoints.values():
            endpoint._unwatch()
        self._endpoints.clear()

    def handler(self) -> grpc.RpcMethodHandler[Any, Any]:
        return grpc.stream_stream_rpc_method_handler(self._session, self._dialect.incoming.FromString, None)

    async def _session(self, _: Any, context: Any) -> None:
        try:
            hello = await within(self._timing.lost_after_s, context.read())
        except asyncio.TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no hello within {self._timing.lost_after_s} s")
        if hello is grpc.aio.EOF or hello.WhichOneof("message") != "hello":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a session begins with a hello")
        try:
            answer = self._hello(hello)
            endpoint = self._endpoint(hello)
        except ProtocolError as error:
            log.warning("session from %s refused: %s", self._dialect.identity(hello), error)
            await context.write(self._refusal(error.message).SerializeToString())
            return
        connection = Connection(lambda: _next(context), context.write)
        endpoint._other_epoch = self._dialect.identity(hello).epoch
        connection.put(endpoint._stamped(answer))
        reason = await endpoint._speak(connection, hello)
        log.info("session from %s: %s", self._dialect.identity(hello), reason)

    def _endpoint(self, hello: InT) -> AcceptedEndpoint[OutT, InT]:
        who = self._dialect.identity(hello)
        found = self._endpoints.get(who.id)
        if found is not None and found.other_epoch == who.epoch:
            return found
        if found is not None:
            found._lose(f"a new epoch {who.epoch:016x} came instead of {found.other_epoch:016x}")
            self.forget(found)
        endpoint = AcceptedEndpoint(self._dialect, self._own_epoch, self._timing, self._heartbeat, who.id)
        endpoint._events = self._accept(hello, endpoint)
        self._endpoints[who.id] = endpoint
        return endpoint


class SessionServer:
    """One gRPC server on `host` with a port that the system draws. Sessions by service name, plus unary calls.

    `advertise_host`: what others connect to; needed where `host` is a wildcard. `credentials`: what callers must show;
    without a token whoever reaches `host` may call, so only a loopback host goes without.

    Raises:
        ConfigError: the host needs an advertise_host or a token.
    """

    def __init__(self, host: str, advertise_host: str = "", credentials: Credentials = NO_CREDENTIALS) -> None:
        if host in ("0.0.0.0", "::") and not advertise_host:
            raise ConfigError(f"worker.host {host}: needs worker.advertise_host, the address that others connect to")
        if not credentials.token and not is_loopback(host):
            raise ConfigError(
                f"worker.host {host} can be reached from other hosts: needs worker.token, equal for all routers and "
                "workers (RAY_AUTH_MODE=token gives them one)"
            )
        self._host = host
        self._credentials = credentials
        self._advertise_host = advertise_host or host
        self._server = grpc.aio.server(
            interceptors=[TokenCheck(credentials.token)] if credentials.token else [],
            options=[*CHANNEL_OPTIONS, ("grpc.so_reuseport", 0)],
        )
        self.address = ""

    def add(self, service: str, methods: dict[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        """Before start()."""
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))

    async def start(self) -> str:
        """Listen; returns the "host:port" that others connect to.

        Raises:
            UnavailableError: the host can't be listened on.
        """
        try:
            port = self._credentials.listen(self._server, f"{_bracketed(self._host)}:0")
        except RuntimeError as error:
            raise UnavailableError(f"worker.host {self._host}: {error}") from error
        await self._server.start()
        self.address = f"{_bracketed(self._advertise_host)}:{port}"
        return self.address

    async def stop(self, grace_s: float = 0.5) -> None:
        """Take no new session and end those that stand; ones that were finished get `grace_s` to go out."""
        await self._server.stop(grace_s)


class _NoEvents:
    """Between an endpoint's creation and its acceptance nothing happens."""

    def connected(self, hello: Any, *, resumed: bool) -> None:
        raise AssertionError("an endpoint spoke before it was accepted")

    def message(self, message: Any) -> None:
        raise AssertionError("an endpoint spoke before it was accepted")

    def broken(self, reason: str) -> None: ...

    def lost(self, reason: str) -> None: ...

    def refused(self, reason: str) -> None: ...


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


async def _next(context: Any) -> Any:
    message = await context.read()
    return None if message is grpc.aio.EOF else message
