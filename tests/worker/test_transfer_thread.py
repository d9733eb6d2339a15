"""The door to the transfer thread, with a scripted listener."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from rtp_llm.errors import ConfigError
from rtp_llm.wire.convert import key_message
from rtp_llm.wire.key import RequestKey, WorkerKey
from rtp_llm.wire.v1 import router_pb2 as pb
from rtp_llm.worker.transfer_thread import TransferThread
from tests.worker.tiny import tiny_config, tiny_engine

ROUTER = 77


class FaultyListener:
    """Fails on the first message to a router and keeps the others."""

    def __init__(self) -> None:
        self.calls = 0
        self.fenced: list[int] = []
        self.all_came = asyncio.Event()

    def to_router(self, router_epoch: int, message: pb.WorkerMessage) -> None:
        self.calls += 1
        if self.calls == 1:
            raise ValueError("a session in a bad state")
        self.fenced.append(message.fenced.key.request)
        if self.calls == 3:
            self.all_came.set()


async def test_what_cannot_be_said_is_logged_and_the_rest_of_its_batch_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = tiny_config()
    engine = tiny_engine(config)
    transfer = TransferThread(engine, WorkerKey("w", 1), config.transfer, config.handover, config.worker, 64)
    listener = FaultyListener()
    transfer.start(listener)  # type: ignore[arg-type]
    try:
        unknown = [
            pb.AttachEntry(key=key_message(RequestKey(ROUTER, n, 0, 0)), next_position=0, role=3) for n in (1, 2, 3)
        ]
        transfer.router_connected(ROUTER)
        transfer.router_said(ROUTER, pb.RouterMessage(attach=pb.Attach(entries=unknown)))
        time.sleep(0.1)  # noqa: ASYNC251 (the loop must not take the first alone)
        with caplog.at_level(logging.ERROR, "rtp_llm.worker"):
            await asyncio.wait_for(listener.all_came.wait(), 5)
        assert listener.fenced == [2, 3]
        assert "a session in a bad state" in caplog.text and "/1/0#0" in caplog.text
    finally:
        engine.stop()
        await transfer.stop()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "worker-7"])
async def test_a_data_plane_that_other_hosts_reach_needs_a_trusted_network(host: str) -> None:
    config = tiny_config(transfer__host=host)
    engine = tiny_engine(config)
    with pytest.raises(ConfigError, match=f"transfer.host {host} .*transfer.trusted_network: true"):
        TransferThread(engine, WorkerKey("w", 1), config.transfer, config.handover, config.worker, 64)


async def test_a_network_that_is_called_trusted_is_listened_on() -> None:
    config = tiny_config(transfer__host="0.0.0.0", transfer__trusted_network=True)
    engine = tiny_engine(config)
    transfer = TransferThread(engine, WorkerKey("w", 1), config.transfer, config.handover, config.worker, 64)
    assert transfer.transport_address
