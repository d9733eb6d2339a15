"""What routers and peers may send over the wire, mutated by bytes and by fields, into a real worker's machines.

RTP_FUZZ_MESSAGES=100000 pytest tests/worker/test_hostile_messages.py sends so many of each speaker; the default is short.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from rtp_llm.errors import EngineError, ProtocolError
from rtp_llm.request import Request
from rtp_llm.sampling_params import SamplingParams
from rtp_llm.wire import convert
from rtp_llm.wire.key import RequestKey, WorkerKey
from rtp_llm.wire.v1 import peer_pb2, router_pb2, types_pb2
from rtp_llm.worker.transfer_thread import TransferThread
from tests.worker.tiny import tiny_config, tiny_engine

MESSAGES = int(os.environ.get("RTP_FUZZ_MESSAGES", "300"))
ROUTER, PEER = 77, WorkerKey("there", 5)
INTEGERS = (0, 1, -1, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63), 2**64 - 1)
FLOATS = (0.0, -1.0, math.nan, math.inf, -math.inf, 1e308, 5e-324)


class Silent:
    """Says nothing to nobody."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def fault(self, text: str) -> None:
        self.faults.append(text)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def key(draw: random.Random) -> types_pb2.Key:
    return convert.key_message(RequestKey(ROUTER, draw.randint(1, 6), 0, draw.randint(0, 2)))


def request(draw: random.Random) -> types_pb2.Request:
    prompt = [draw.randrange(64) for _ in range(draw.randint(1, 30))]
    sampling = SamplingParams(temperature=0.0, seed=1, max_tokens=draw.randint(1, 20))
    return convert.request_message(Request(request_id="t", prompt=prompt, sampling=sampling))


def from_router(draw: random.Random) -> router_pb2.RouterMessage:
    k, peer = key(draw), convert.worker_message(PEER)
    entry = router_pb2.AttachEntry(key=k, next_position=draw.randrange(9), role=2)
    submit = router_pb2.Submit(key=k, request=request(draw), receiver=peer, receiver_address="there:1")
    return draw.choice(
        [
            router_pb2.RouterMessage(submit=submit),
            router_pb2.RouterMessage(submit=submit),
            router_pb2.RouterMessage(cancel=router_pb2.Cancel(key=k)),
            router_pb2.RouterMessage(fence=router_pb2.Fence(key=k)),
            router_pb2.RouterMessage(attach=router_pb2.Attach(entries=[entry])),
        ]
    )


def from_sender(draw: random.Random) -> peer_pb2.SenderMessage:
    k, grant = key(draw), draw.randint(0, 9)
    first = types_pb2.SampledToken(token=9, logprob=-1.0)
    return draw.choice(
        [
            peer_pb2.SenderMessage(reserve=peer_pb2.Reserve(key=k, request=request(draw), given_up=grant)),
            peer_pb2.SenderMessage(
                commit=peer_pb2.Commit(key=k, grant=grant, first=first, bytes=draw.choice([0, 640]))
            ),
            peer_pb2.SenderMessage(abort=peer_pb2.Abort(key=k, grant=grant)),
            peer_pb2.SenderMessage(heartbeat=peer_pb2.SenderHeartbeat(grants=[grant])),
        ]
    )


def from_receiver(draw: random.Random) -> peer_pb2.ReceiverMessage:
    k, grant = key(draw), draw.randint(1, 9)
    granted = peer_pb2.Granted(key=k, grant=grant, prefix_tokens=8 * draw.randrange(3), lease_seconds=5.0)
    return draw.choice(
        [
            peer_pb2.ReceiverMessage(granted=granted),
            peer_pb2.ReceiverMessage(granted=granted),
            peer_pb2.ReceiverMessage(no_room=peer_pb2.NoRoom(key=k, reason="full")),
            peer_pb2.ReceiverMessage(committed=peer_pb2.PeerCommitted(key=k, grant=grant)),
            peer_pb2.ReceiverMessage(expired=peer_pb2.Expired(key=k, grant=grant)),
            peer_pb2.ReceiverMessage(bad_checksum=peer_pb2.BadChecksum(key=k, grant=grant)),
            peer_pb2.ReceiverMessage(fenced=peer_pb2.PeerFenced(key=k)),
        ]
    )


def mutate_fields(message: Message, draw: random.Random) -> None:
    """Puts into some fields what nobody would say."""
    for field, value in message.ListFields():
        repeated = not isinstance(value, Message) and hasattr(value, "append")
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for each in value if repeated else [value]:
                mutate_fields(each, draw)
        elif draw.random() < 0.15:
            values: tuple[Any, ...] = FLOATS
            if field.cpp_type not in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
                values = INTEGERS
            odd = draw.choice(values)
            try:
                if repeated:
                    value.append(odd)
                else:
                    setattr(message, field.name, odd)
            except (TypeError, ValueError):  # beyond the wire's type
                continue


def mutate_bytes(data: bytes, draw: random.Random) -> bytes:
    mutated = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(mutated) + 1)
        how = draw.randrange(4)
        if how == 0:
            mutated[at : at + 1] = bytes([draw.randrange(256)])
        elif how == 1:
            mutated[at:at] = draw.randbytes(draw.randint(1, 9))
        elif how == 2:
            del mutated[at : at + draw.randint(1, 9)]
        else:
            del mutated[at:]
    return bytes(mutated)


async def idle(transfer: TransferThread, engine: Any) -> None:
    """Until nothing is held; routers and receivers that are lost end what they began."""
    for _ in range(200):
        try:
            transfer.check_idle()
            engine.check_idle()
        except EngineError:
            await asyncio.sleep(0.1)
        else:
            return
    transfer.check_idle()
    engine.check_idle()


@pytest.mark.parametrize("make", [from_router, from_sender, from_receiver])
async def test_a_worker_survives_whatever_is_said_over_the_wire(make: Callable[[random.Random], Message]) -> None:
    config = tiny_config(handover__lease_s=1.0, handover__lease_margin_s=0.2, handover__reserve_wait_s=0.1)
    engine, listener = tiny_engine(config), Silent()
    transfer = TransferThread(engine, WorkerKey("here", 1), config.transfer, config.handover, config.worker, 64)
    transfer.start(listener)  # type: ignore[arg-type]
    engine.start()
    taken = 0
    try:
        transfer.router_connected(ROUTER)
        for number in range(MESSAGES):
            draw = random.Random(number)
            if make is from_receiver and number % 4 == 0:  # somebody must wait for it
                transfer.router_said(ROUTER, from_router(draw))
            right = make(draw)
            wrong = type(right)()
            wrong.CopyFrom(right)
            mutate_fields(wrong, draw)
            if number % 2:
                try:
                    wrong = type(right).FromString(mutate_bytes(right.SerializeToString(), draw))
                except DecodeError:
                    continue
            try:
                if isinstance(wrong, router_pb2.RouterMessage):
                    transfer.router_said(ROUTER, wrong)
                elif isinstance(wrong, peer_pb2.SenderMessage):
                    transfer.sender_said(PEER, wrong)
                else:
                    assert isinstance(wrong, peer_pb2.ReceiverMessage)
                    transfer.receiver_said(PEER, wrong)
                taken += 1
            except ProtocolError:
                continue
            if number % 16 == 0:
                await asyncio.sleep(0)
                engine.take_outputs()
        transfer.sender_lost(PEER)
        transfer.receiver_lost(PEER, "over")
        transfer.router_lost(ROUTER)
        await idle(transfer, engine)
        assert not listener.faults and not engine.failure
        assert taken > MESSAGES / 3
    finally:
        engine.stop()
        await transfer.stop()
