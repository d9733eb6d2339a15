"""Versions of the protocol: which meet, and that what was added leaves the version before alone."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2

from rtp_llm.errors import ProtocolError
from rtp_llm.sampling_params import FIELDS
from rtp_llm.wire.key import WorkerKey
from rtp_llm.wire.server import SessionServer
from rtp_llm.wire.session import PEER_SERVICE, WORKER_SERVICE, sender_acceptor
from rtp_llm.wire.v1 import peer_pb2, router_pb2, types_pb2
from rtp_llm.wire.versions import SPOKEN, Versions
from tests.wire.old_protocol import KEPT, OldProtocol
from tests.wire.test_session import ROUTER_EPOCH, TIMING, Events, served, session_to

LAST = SPOKEN.newest - 1


@pytest.mark.parametrize(
    ("here", "there", "shared"),
    [((1, 2), (1, 1), 1), ((1, 2), (1, 2), 2), ((1, 2), (2, 3), 2), ((2, 3), (1, 2), 2), ((2, 3), (3, 4), 3)],
)
def test_two_ends_speak_the_newest_version_that_both_know(
    here: tuple[int, int], there: tuple[int, int], shared: int
) -> None:
    assert Versions(*here).shared(Versions(*there)) == shared


@pytest.mark.parametrize(
    ("here", "there", "text"),
    [
        ((2, 3), (1, 1), "protocol: 2 to 3 here, 1 there"),
        ((1, 2), (3, 4), "protocol: 1 to 2 here, 3 to 4 there"),
        ((1, 2), (0, 0), "protocol: 1 to 2 here, 0 there"),
    ],
)
def test_versions_that_are_further_apart_are_refused_by_name(
    here: tuple[int, int], there: tuple[int, int], text: str
) -> None:
    with pytest.raises(ProtocolError) as refused:
        Versions(*here).shared(Versions(*there))
    assert refused.value.message == text


def test_a_hello_says_the_oldest_where_version_1_read_the_only_one() -> None:
    """It compared that field with its own for equality, and doesn't know the other."""
    hello = router_pb2.RouterHello()
    SPOKEN.write(hello)
    assert Versions.of(hello) == SPOKEN
    assert hello.protocol_version == SPOKEN.oldest == LAST
    assert Versions.of(router_pb2.RouterHello(protocol_version=1)) == Versions(1, 1)


# --- Sessions of other versions. What is spoken here is stripped, or written by hand.


async def first_answer(address: str, service: str, hello: Any, answer: type[Any]) -> Any:
    """What a session begins with that `hello` opens."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_stream(f"/{service}/Session", type(hello).SerializeToString, answer.FromString)()
        await call.write(hello)
        return await call.read()


def router_hello(oldest: int, newest: int) -> Any:
    hello = router_pb2.RouterHello(protocol_version=oldest, newest_protocol=newest, router_id="r")
    return router_pb2.RouterMessage(hello=hello, router_epoch=ROUTER_EPOCH)


async def test_a_worker_meets_a_router_of_the_last_version_and_refuses_an_older_one_and_a_newer_one() -> None:
    async with served() as (worker, _):

        async def met(oldest: int, newest: int) -> Any:
            return await first_answer(
                worker.address, WORKER_SERVICE, router_hello(oldest, newest), router_pb2.WorkerMessage
            )

        answer = await met(LAST, 0)
        assert Versions.of(answer.hello) == SPOKEN
        assert worker.endpoints[-1].protocol == LAST
        assert (await met(LAST - 1, 0)).refused.reason == f"protocol: {SPOKEN} here, {LAST - 1} there"
        newer = SPOKEN.newest + 1
        assert (await met(newer, 0)).refused.reason == f"protocol: {SPOKEN} here, {newer} there"


async def test_a_receiver_meets_a_sender_of_the_last_version_and_refuses_an_older_one() -> None:
    endpoints: list[Any] = []

    def accept(hello: Any, endpoint: Any) -> Events:
        endpoints.append(endpoint)
        return Events()

    server = SessionServer("127.0.0.1")
    acceptor = sender_acceptor(WorkerKey("r", 7), lambda hello: peer_pb2.PeerHello(), accept, TIMING)
    server.add(PEER_SERVICE, {"Session": acceptor.handler()})
    address = await server.start()
    try:

        async def met(version: int) -> Any:
            worker = types_pb2.WorkerKey(id="s", epoch=5)
            hello = peer_pb2.SenderMessage(
                hello=peer_pb2.PeerHello(protocol_version=version, worker=worker), sender_epoch=5
            )
            return await first_answer(address, PEER_SERVICE, hello, peer_pb2.ReceiverMessage)

        assert Versions.of((await met(LAST)).hello) == SPOKEN
        assert endpoints[-1].protocol == LAST
        assert (await met(LAST - 1)).refused.reason == f"protocol: {SPOKEN} here, {LAST - 1} there"
    finally:
        await server.stop()


@pytest.mark.parametrize("version", [LAST, SPOKEN.newest + 1])
async def test_a_router_meets_a_worker_of_the_last_version_and_not_one_that_has_forgotten_its_own(version: int) -> None:
    async def session(requests: Any, context: Any) -> Any:
        hello = await context.read()
        worker = types_pb2.WorkerKey(id="w", epoch=7)
        yield router_pb2.WorkerMessage(
            hello=router_pb2.WorkerHello(protocol_version=version, worker=worker),
            worker_epoch=7,
            router_epoch=hello.router_epoch,
        )
        await context.read()

    server = SessionServer("127.0.0.1")
    handler = grpc.stream_stream_rpc_method_handler(
        session, router_pb2.RouterMessage.FromString, router_pb2.WorkerMessage.SerializeToString
    )
    server.add(WORKER_SERVICE, {"Session": handler})
    address = await server.start()
    try:
        async with session_to(address) as (router, events):
            if version == LAST:
                assert await events.next("connected") is False
                assert router.protocol == LAST
            else:
                assert await events.next("refused") == f"protocol: {SPOKEN} here, {version} there"
    finally:
        await server.stop()


# --- What was added.


def test_the_version_before_is_the_one_that_is_kept() -> None:
    """And something was added to it: else there is no new version."""
    assert [path.name for path in sorted(KEPT.parent.glob("protocol_*.txtpb"))] == [KEPT.name]
    assert [file for file in OldProtocol().files if new_fields(file)]


def current_of(file: Any) -> Any:
    modules = {each.DESCRIPTOR.name: each for each in (types_pb2, peer_pb2, router_pb2)}
    return modules[file.name].DESCRIPTOR


def new_fields(file: Any) -> list[str]:
    current = current_of(file)
    return [
        field.full_name
        for name, message in current.message_types_by_name.items()
        for field in message.fields
        if name not in file.message_types_by_name or field.name not in file.message_types_by_name[name].fields_by_name
    ]


def test_a_way_of_sampling_that_the_version_before_does_not_know_needs_this_one() -> None:
    """Else a worker of that version would be asked, and sample in another way."""
    added = {
        name.rpartition(".")[2]
        for file in OldProtocol().files
        for name in new_fields(file)
        if ".SamplingParams." in name
    }
    assert added == {name for name, field in FIELDS.items() if field.since > LAST}


def test_nothing_that_the_version_before_says_has_changed_its_meaning() -> None:
    """Name, number, type and place of each field; numbers of enums; calls. A number that was given up is not given again."""

    for file in OldProtocol().files:
        current = current_of(file)
        for name, message in file.message_types_by_name.items():
            now = current.message_types_by_name[name]
            was, is_now = [proto_of(each) for each in (message, now)]
            fields = {field.name: field for field in is_now.field}
            for field in was.field:
                assert fields[field.name] == field, f"{name}.{field.name}"
            old, new = [
                {number for span in each.reserved_range for number in range(span.start, span.end)}
                for each in (was, is_now)
            ]
            assert old <= new, f"{name}: a number that was given up is given again"
        for name, enum in file.enum_types_by_name.items():
            now = current.enum_types_by_name[name]
            assert {each.name: each.number for each in enum.values}.items() <= {
                each.name: each.number for each in now.values
            }.items()
        for name, service in file.services_by_name.items():
            for method in service.methods:
                now = current.services_by_name[name].methods_by_name[method.name]
                types = [(each.input_type.full_name, each.output_type.full_name) for each in (method, now)]
                assert types[0] == types[1], method.full_name


def proto_of(descriptor: Any) -> Any:
    proto = descriptor_pb2.DescriptorProto()
    descriptor.CopyToProto(proto)
    return proto
