"""Sessions over real gRPC on loopback, through a TCP proxy that the tests break."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from rtp_llm.errors import ConfigError, ProtocolError, UnavailableError
from rtp_llm.wire.credentials import NO_CREDENTIALS, Credentials
from rtp_llm.wire.endpoint import is_transport_error
from rtp_llm.wire.key import WorkerKey
from rtp_llm.wire.session import (
    PEER_SERVICE,
    WORKER_SERVICE,
    ReceiverSession,
    SessionServer,
    SessionTiming,
    WorkerSession,
    metrics_method,
    router_acceptor,
    sender_acceptor,
)
from rtp_llm.wire.v1 import peer_pb2, router_pb2, types_pb2
from tests.wire.proxy import Proxy

TIMING = SessionTiming(heartbeat_s=0.1, lost_after_s=5.0)  # nobody is lost because this machine is busy
SILENT = SessionTiming(heartbeat_s=0.1, lost_after_s=0.6)  # for tests that wait for a loss
ROUTER_EPOCH = 0xFEDCBA9876543210


class Events:
    """Records events as ("connected", resumed), ("message", m), ("broken", why), ("lost", why), ("refused", why)."""

    def __init__(self) -> None:
        self.log: list[tuple[str, Any]] = []
        self._queue: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self.hello: Any = None

    def _add(self, kind: str, value: Any) -> None:
        self.log.append((kind, value))
        self._queue.put_nowait((kind, value))

    def connected(self, hello: Any, *, resumed: bool) -> None:
        self.hello = hello
        self._add("connected", resumed)

    def message(self, message: Any) -> None:
        self._add("message", message)

    def broken(self, reason: str) -> None:
        self._add("broken", reason)

    def lost(self, reason: str) -> None:
        self._add("lost", reason)

    def refused(self, reason: str) -> None:
        self._add("refused", reason)

    async def next(self, kind: str, timeout_s: float = 5.0) -> Any:
        found, value = await asyncio.wait_for(self._queue.get(), timeout_s)
        assert found == kind, (found, value)
        return value

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.log]


class ServedWorker:
    """The worker's side: a server, its router sessions and what they hear."""

    def __init__(self, epoch: int, id: str, timing: SessionTiming, credentials: Credentials = NO_CREDENTIALS) -> None:
        self.id, self.epoch, self.timing, self.credentials = id, epoch, timing, credentials
        self.events: list[Events] = []
        self.endpoints: list[Any] = []

    def _accept(self, hello: Any, endpoint: Any) -> Events:
        self.events.append(Events())
        self.endpoints.append(endpoint)
        return self.events[-1]

    async def start(self) -> None:
        hello = router_pb2.WorkerHello(worker=types_pb2.WorkerKey(id=self.id, epoch=self.epoch), pool="prefill")
        self.acceptor = router_acceptor(self.epoch, lambda: hello, self._accept, self.timing)
        self.server = SessionServer("127.0.0.1", credentials=self.credentials)
        self.server.add(
            WORKER_SERVICE, {"Session": self.acceptor.handler(), "Metrics": metrics_method(lambda: b"rtp_llm_x 1\n")}
        )
        self.address = await self.server.start()


@contextlib.asynccontextmanager
async def served(
    epoch: int = 7, id: str = "w", timing: SessionTiming = TIMING, credentials: Credentials = NO_CREDENTIALS
) -> AsyncIterator[tuple[ServedWorker, Proxy]]:
    worker = ServedWorker(epoch, id, timing, credentials)
    await worker.start()
    proxy = Proxy(worker.address)
    await proxy.start()
    try:
        yield worker, proxy
    finally:
        await proxy.close()
        await worker.server.stop()


@contextlib.asynccontextmanager
async def session_to(
    address: str, id: str = "w", timing: SessionTiming = TIMING, credentials: Credentials = NO_CREDENTIALS
) -> AsyncIterator[tuple[WorkerSession, Events]]:
    events = Events()
    session = WorkerSession(
        WorkerKey(id, 0),
        address,
        router_id="r",
        router_epoch=ROUTER_EPOCH,
        events=events,
        timing=timing,
        credentials=credentials,
    )
    session.start()
    try:
        yield session, events
    finally:
        await session.close()


def cancel_message(request: int = 1) -> router_pb2.RouterMessage:
    return router_pb2.RouterMessage(
        cancel=router_pb2.Cancel(key=types_pb2.Key(router_epoch=ROUTER_EPOCH, request=request))
    )


async def test_hellos_are_exchanged_and_messages_flow_both_ways_with_both_epochs() -> None:
    async with served() as (worker, proxy), session_to(proxy.address) as (session, events):
        assert await events.next("connected") is False
        assert events.hello.hello.pool == "prefill"
        assert session.other_epoch == 7
        assert session.send(cancel_message(3))
        assert await worker.events[0].next("connected") is False
        got = await worker.events[0].next("message")
        assert (got.cancel.key.request, got.router_epoch, got.worker_epoch) == (3, ROUTER_EPOCH, 7)
        assert worker.endpoints[0].send(router_pb2.WorkerMessage(load=router_pb2.Load(running=2)))
        back = await events.next("message")
        assert (back.load.running, back.router_epoch, back.worker_epoch) == (2, ROUTER_EPOCH, 7)


async def test_before_a_connection_nothing_is_sent() -> None:
    async with served() as (_, proxy), session_to(proxy.address) as (session, events):
        assert not session.send(cancel_message())
        await events.next("connected")


async def test_heartbeats_alone_keep_a_session_alive() -> None:
    timing = SessionTiming(heartbeat_s=0.1, lost_after_s=1.5)
    async with served(timing=timing) as (worker, proxy), session_to(proxy.address, timing=timing) as (_, events):
        await events.next("connected")
        await asyncio.sleep(2 * timing.lost_after_s)
        assert events.kinds == ["connected"]
        assert worker.events[0].kinds == ["connected"]


async def test_a_broken_connection_is_resumed_and_nobody_is_lost() -> None:
    async with served() as (worker, proxy), session_to(proxy.address) as (session, events):
        await events.next("connected")
        await worker.events[0].next("connected")
        proxy.break_connections()
        await events.next("broken")
        assert await events.next("connected") is True
        assert session.send(cancel_message(5))
        await worker.events[0].next("broken")
        assert await worker.events[0].next("connected") is True
        assert (await worker.events[0].next("message")).cancel.key.request == 5
        assert len(worker.events) == 1


async def test_silence_loses_both_ends_and_a_return_is_a_new_life() -> None:
    async with served(timing=SILENT) as (worker, proxy), session_to(proxy.address, timing=SILENT) as (_, events):
        await events.next("connected")
        proxy.stall()
        began = asyncio.get_running_loop().time()
        assert "silent" in await events.next("broken")
        assert "silent" in await events.next("lost")
        assert asyncio.get_running_loop().time() - began < 2 * SILENT.lost_after_s
        for kind in ("connected", "broken", "lost"):
            await worker.events[0].next(kind)
        proxy.break_connections()
        proxy.flow()
        assert await events.next("connected") is False
        assert await worker.events[0].next("connected") is False


async def test_a_forgotten_endpoint_is_accepted_anew() -> None:
    async with served(timing=SILENT) as (worker, proxy), session_to(proxy.address, timing=SILENT) as (_, events):
        await events.next("connected")
        proxy.stall()
        for kind in ("connected", "broken", "lost"):
            await worker.events[0].next(kind)
        worker.acceptor.forget(worker.endpoints[0])
        proxy.break_connections()
        proxy.flow()
        for kind in ("broken", "lost", "connected"):
            await events.next(kind)
        assert await worker.events[1].next("connected") is False


async def test_a_refused_reconnect_loses_the_worker_at_once() -> None:
    async with served() as (_, proxy), session_to(proxy.address) as (_, events):
        await events.next("connected")
        began = asyncio.get_running_loop().time()
        await proxy.close()
        await events.next("broken")
        assert "refused" in await events.next("lost")
        assert asyncio.get_running_loop().time() - began < TIMING.lost_after_s


async def test_a_first_connection_that_is_refused_is_lost_once() -> None:
    async with served() as (_, proxy):
        await proxy.close()
        async with session_to(proxy.address) as (_, events):
            assert "refused" in await events.next("lost")
            await asyncio.sleep(0.3)
            assert events.kinds == ["lost"]


async def test_a_new_epoch_behind_one_address_loses_the_old_worker_first() -> None:
    async with (
        served(epoch=7) as (_, proxy),
        served(epoch=8) as (new, _),
        session_to(proxy.address) as (session, events),
    ):
        await events.next("connected")
        proxy.target = new.address
        proxy.break_connections()
        await events.next("broken")
        assert "new epoch" in await events.next("lost")
        assert await events.next("connected") is False
        assert session.other_epoch == 8


async def test_a_router_with_a_new_epoch_loses_its_old_session() -> None:
    async with served() as (worker, proxy), session_to(proxy.address) as (_, events):
        await events.next("connected")
        again = Events()
        other = WorkerSession(
            WorkerKey("w", 0), proxy.address, router_id="r", router_epoch=1, events=again, timing=TIMING
        )
        other.start()
        await again.next("connected")
        for kind in ("connected", "broken", "lost"):
            await worker.events[0].next(kind)
        assert await worker.events[1].next("connected") is False
        await other.close()


async def test_a_router_that_was_lost_and_comes_with_a_new_epoch_is_lost_once() -> None:
    async with served(timing=SILENT) as (worker, proxy):
        async with session_to(proxy.address) as (_, events):
            await events.next("connected")
            proxy.stall()
            for kind in ("connected", "broken", "lost"):
                await worker.events[0].next(kind)
        proxy.flow()
        again = Events()
        other = WorkerSession(
            WorkerKey("w", 0), proxy.address, router_id="r", router_epoch=1, events=again, timing=TIMING
        )
        other.start()
        await again.next("connected")
        assert await worker.events[1].next("connected") is False
        assert worker.events[0].kinds == ["connected", "broken", "lost"]
        await other.close()


async def test_another_worker_at_the_address_refuses() -> None:
    async with served(id="b") as (worker, proxy), session_to(proxy.address, id="a") as (session, events):
        assert await events.next("refused") == "worker b answers here, a was expected"
        assert worker.events == []
        assert not session.is_connected


async def test_a_message_between_other_epochs_ends_the_connection() -> None:
    async with served() as (worker, proxy), session_to(proxy.address) as (session, events):
        await events.next("connected")
        await worker.events[0].next("connected")
        session._connection.put(
            router_pb2.RouterMessage(cancel=router_pb2.Cancel(), router_epoch=1).SerializeToString()
        )
        assert "this session is between" in await worker.events[0].next("broken")
        await events.next("broken")
        assert await events.next("connected") is True


async def test_a_callback_that_fails_ends_the_connection_and_not_the_session(caplog: pytest.LogCaptureFixture) -> None:
    class FailsOnce(Events):
        def connected(self, hello: Any, *, resumed: bool) -> None:
            super().connected(hello, resumed=resumed)
            if not resumed:
                raise KeyError("a bug")

    events = FailsOnce()
    async with served() as (_, proxy):
        session = WorkerSession(
            WorkerKey("w", 0), proxy.address, router_id="r", router_epoch=ROUTER_EPOCH, events=events, timing=TIMING
        )
        session.start()
        assert await events.next("connected") is False
        assert await events.next("broken") == "KeyError: 'a bug'"
        assert await events.next("connected") is True
        assert "session callback failed" in caplog.text
        await session.close()


async def test_a_queue_over_its_limit_gives_the_connection_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtp_llm.wire.endpoint.MAX_QUEUED_BYTES", 1 << 20)
    async with served() as (_, proxy), session_to(proxy.address) as (session, events):
        await events.next("connected")
        big = router_pb2.RouterMessage(
            submit=router_pb2.Submit(request=types_pb2.Request(request_id="x" * (1200 << 10)))
        )
        assert session.send(big)  # one message of any size passes
        assert session.send(big) is False
        assert "bytes wait" in await events.next("broken")
        assert await events.next("connected") is True


async def test_a_message_longer_than_grpcs_own_limit_passes() -> None:
    timing = SessionTiming(lost_after_s=20)
    async with served(timing=timing) as (worker, proxy), session_to(proxy.address, timing=timing) as (session, events):
        await events.next("connected")
        await worker.events[0].next("connected")
        prompt = [150_000] * 1_500_000
        assert session.send(
            router_pb2.RouterMessage(submit=router_pb2.Submit(request=types_pb2.Request(prompt=prompt)))
        )
        got = await worker.events[0].next("message", timeout_s=20)
        assert got.ByteSize() > 4 << 20
        assert len(got.submit.request.prompt) == len(prompt)


async def test_metrics_come_over_the_sessions_channel() -> None:
    async with served() as (_, proxy), session_to(proxy.address) as (session, events):
        with pytest.raises(UnavailableError, match="not connected"):
            await session.metrics()
        await events.next("connected")
        assert await session.metrics() == "rtp_llm_x 1\n"


async def test_a_session_with_the_servers_token_stands() -> None:
    async with (
        served(credentials=Credentials("s3cret")) as (_, proxy),
        session_to(proxy.address, credentials=Credentials("s3cret")) as (session, events),
    ):
        await events.next("connected")
        assert await session.metrics() == "rtp_llm_x 1\n"


@pytest.mark.parametrize(("token", "reason"), [("", "asks for worker.token"), ("wr0ng", "worker.token differs")])
async def test_a_session_without_the_servers_token_is_refused(
    token: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    async with (
        served(credentials=Credentials("s3cret")) as (worker, proxy),
        session_to(proxy.address, credentials=Credentials(token)) as (_, events),
    ):
        assert reason in await events.next("refused")
        assert worker.events == []
        async with grpc.aio.insecure_channel(worker.address) as channel:
            metrics = channel.unary_unary(f"/{WORKER_SERVICE}/Metrics", None, None)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await metrics(b"")
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "s3cret" not in caplog.text
    assert "wr0ng" not in caplog.text


async def test_a_sender_that_means_another_worker_draws_no_nonce() -> None:
    async with peers() as (receiver, _, events):
        await events.next("connected")
        assert receiver.nonce == 1
        other = Events()
        session = ReceiverSession(
            WorkerKey("another", 9),
            receiver.address,
            sender_epoch=5,
            hello=lambda: peer_pb2.PeerHello(layout_fingerprint="L"),
            heartbeat_due=lambda: None,
            events=other,
            timing=TIMING,
        )
        session.start()
        assert "another was expected" in await other.next("refused")
        assert receiver.nonce == 1
        await session.close()


async def test_close_is_silent_and_final() -> None:
    async with served(timing=SILENT) as (worker, proxy), session_to(proxy.address) as (session, events):
        await events.next("connected")
        await session.close()
        await session.close()
        for kind in ("connected", "broken", "lost"):
            await worker.events[0].next(kind)
        assert events.kinds == ["connected"]
        assert not session.send(cancel_message())


async def test_close_ends_a_try_that_is_under_way() -> None:
    async with served() as (_, proxy):
        proxy.stall()
        before = asyncio.all_tasks()
        session = WorkerSession(
            WorkerKey("w", 0), proxy.address, router_id="r", router_epoch=1, events=Events(), timing=TIMING
        )
        session.start()
        await asyncio.sleep(0.05)
        await asyncio.wait_for(session.close(), 2)
        assert session_tasks(asyncio.all_tasks() - before) == []


def session_tasks(tasks: set[asyncio.Task[Any]]) -> list[str]:
    return [name for task in tasks if "ClientEndpoint" in (name := task.get_coro().__qualname__)]  # type: ignore[union-attr]


async def test_tries_to_connect_are_spaced() -> None:
    tries = 0

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server, session_to("{}:{}".format(*server.sockets[0].getsockname())):
        await asyncio.sleep(0.7)
        assert 1 <= tries <= 10  # at 0, 50, 150, 350 ms, each with a look whether TCP refuses


class ServedReceiver:
    """R's side of peer sessions; refuses another layout."""

    def __init__(self) -> None:
        self.events = Events()
        self.nonce = 0

    def _hello(self, other: peer_pb2.PeerHello) -> peer_pb2.PeerHello:
        if other.layout_fingerprint != "L":
            raise ProtocolError("groups[0].block_tokens: 16 here, 64 there")
        self.nonce += 1
        return peer_pb2.PeerHello(worker=types_pb2.WorkerKey(id="R", epoch=9), transport_nonce=self.nonce)

    def _accept(self, hello: Any, endpoint: Any) -> Events:
        self.endpoint = endpoint
        return self.events

    async def start(self) -> None:
        self.acceptor = sender_acceptor(WorkerKey("R", 9), self._hello, self._accept, TIMING)
        self.server = SessionServer("127.0.0.1")
        self.server.add(PEER_SERVICE, {"Session": self.acceptor.handler()})
        self.address = await self.server.start()


@contextlib.asynccontextmanager
async def peers(layout: str = "L") -> AsyncIterator[tuple[ServedReceiver, ReceiverSession, Events]]:
    receiver, events = ServedReceiver(), Events()

    def heartbeat_due() -> None:
        session.send(peer_pb2.SenderMessage(heartbeat=peer_pb2.SenderHeartbeat(grants=[11, 12])))

    await receiver.start()
    session = ReceiverSession(
        WorkerKey("R", 9),
        receiver.address,
        sender_epoch=4,
        hello=lambda: peer_pb2.PeerHello(worker=types_pb2.WorkerKey(id="S", epoch=4), layout_fingerprint=layout),
        heartbeat_due=heartbeat_due,
        events=events,
        timing=TIMING,
    )
    session.start()
    try:
        yield receiver, session, events
    finally:
        await session.close()
        await receiver.server.stop()


async def test_a_senders_heartbeat_lists_its_grants() -> None:
    async with peers() as (receiver, _, events):
        await events.next("connected")
        assert events.hello.hello.transport_nonce == 1
        await receiver.events.next("connected")
        assert list((await receiver.events.next("message")).heartbeat.grants) == [11, 12]


async def test_peers_of_unequal_layout_are_refused_by_what_differs() -> None:
    async with peers(layout="M") as (receiver, session, events):
        assert await events.next("refused") == "groups[0].block_tokens: 16 here, 64 there"
        assert receiver.events.log == []
        assert not session.is_connected


async def test_a_sender_may_ask_for_another_hello() -> None:
    async with peers() as (receiver, session, events):
        await events.next("connected")
        assert session.ask_hello()
        await receiver.events.next("connected")
        asked = await receiver.events.next("message")
        assert asked.WhichOneof("message") == "hello"
        receiver.endpoint.send(peer_pb2.ReceiverMessage(hello=receiver._hello(asked.hello)))
        assert (await events.next("message")).hello.transport_nonce == 2


async def all_is_read_before_the_end(worker: ServedWorker, events: Events, count: int) -> None:
    for number in range(count):
        worker.endpoints[0].send(router_pb2.WorkerMessage(load=router_pb2.Load(running=number)))
    await worker.acceptor.finish(timeout_s=30)
    await worker.server.stop(grace_s=30)
    got = [(await events.next("message")).load.running for _ in range(count)]
    assert got == list(range(count))
    assert await events.next("broken") == "closed by the other end"


async def test_a_server_that_finishes_writes_what_waits_before_it_ends() -> None:
    async with served() as (worker, proxy), session_to(proxy.address) as (_, events):
        await events.next("connected")
        await worker.events[0].next("connected")
        await all_is_read_before_the_end(worker, events, 2000)


async def test_what_a_server_said_before_its_end_is_read_by_who_goes_on_writing() -> None:
    async with served() as (worker, proxy), session_to(proxy.address) as (session, events):
        await events.next("connected")
        await worker.events[0].next("connected")

        def write_on() -> None:
            if session.send(cancel_message()):
                asyncio.get_running_loop().call_soon(write_on)

        write_on()
        await all_is_read_before_the_end(worker, events, 500)


async def test_a_server_says_the_address_that_others_connect_to() -> None:
    with pytest.raises(ConfigError, match=r"worker\.advertise_host"):
        SessionServer("0.0.0.0")
    server = SessionServer("127.0.0.1", advertise_host="localhost")
    assert (await server.start()).startswith("localhost:")
    await server.stop()


async def test_a_host_of_another_machine_can_not_be_listened_on() -> None:
    with pytest.raises(UnavailableError, match=r"192\.0\.2\.1"):
        await SessionServer("192.0.2.1", credentials=Credentials("secret")).start()


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "worker-7", "0.0.0.0"])
def test_a_host_that_others_reach_is_not_served_without_a_token(host: str) -> None:
    with pytest.raises(ConfigError, match=rf"worker\.host {host} .*worker\.token"):
        SessionServer(host, advertise_host="192.0.2.1")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
async def test_loopback_may_go_without_a_token(host: str) -> None:
    SessionServer(host)


def test_what_grpc_raises_into_a_write_of_a_lost_connection_is_no_failed_callback() -> None:
    assert is_transport_error(grpc.aio.InternalError("Failed execute_batch"))
    assert is_transport_error(grpc.aio.UsageError("the call is over"))
    assert not is_transport_error(RuntimeError("a bug in a callback"))


def test_that_nobody_reads_the_status_of_a_session_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("grpc._cython.cygrpc")
    log.error("ExecuteBatchError raised in core by servicer method [%s]", "/rtp_llm.wire.v1.Worker/Session")
    log.error("Unexpected [%s] raised by servicer method", "ValueError")
    assert [record.getMessage() for record in caplog.records] == ["Unexpected [ValueError] raised by servicer method"]


async def failed(session: WorkerSession) -> str:
    """Why it can't connect, once it has tried."""
    while not session.failure:  # noqa: ASYNC110 - nobody is told
        await asyncio.sleep(0.01)
    return session.failure


@pytest.mark.parametrize("where", ["silent", "refused", "nowhere"])
async def test_a_worker_that_cannot_be_reached_is_said_once_with_its_address(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A port that takes connections and says nothing, as firewalls do; one where nobody listens; a host without an address."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        if where == "silent":
            port.listen()
        address = "nowhere.invalid:1" if where == "nowhere" else f"127.0.0.1:{port.getsockname()[1]}"
        async with session_to(address, timing=SILENT) as (session, _):
            for _ in range(2):
                failure = await failed(session)
                session._failure = ""
        [said] = [
            record.getMessage()
            for record in caplog.records
            if record.name == "rtp_llm.wire" and record.levelname == "WARNING"
        ]
        assert said.startswith(f"w@0000000000000000 at {address} can't be reached, it is tried further: ")
        assert failure == "no answer within 0.6 s" if where == "silent" else failure.startswith("UNAVAILABLE: ")


async def test_a_session_survives_what_nobody_has_expected_while_it_connects(caplog: pytest.LogCaptureFixture) -> None:
    async with served() as (_, proxy):
        events = Events()
        session = WorkerSession(
            WorkerKey("w", 0), proxy.address, router_id="r", router_epoch=ROUTER_EPOCH, events=events, timing=TIMING
        )
        hello, session._hello = session._hello, lambda: 1 // 0  # type: ignore[return-value,assignment]
        session.start()
        await failed(session)
        assert session.failure.startswith("ZeroDivisionError")
        assert any(record.levelname == "ERROR" and record.exc_info for record in caplog.records)
        session._hello = hello
        assert await events.next("connected") is False
        assert session.failure == ""
        await session.close()
