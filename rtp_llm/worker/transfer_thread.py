"""TransferThread: the door to the native thread that owns the handover's state machines and the data plane."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from rtp_llm._native import _engine
from rtp_llm.config import HandoverSettings, TransferSettings, WorkerSettings, is_loopback
from rtp_llm.engine import NativeEngine
from rtp_llm.errors import ConfigError
from rtp_llm.wire.key import WorkerKey
from rtp_llm.wire.v1.peer_pb2 import ReceiverMessage, SenderMessage
from rtp_llm.wire.v1.router_pb2 import RouterMessage, WorkerMessage
from rtp_llm.worker import to_native, to_wire

log = logging.getLogger("rtp_llm.worker")

_SENDER_BUSY = ("queued", "computing", "pushing", "awaiting", "committing", "local", "flushing", "pushes_in_flight")
_RECEIVER_BUSY = ("queued", "granted", "verifying", "running", "quarantined_grants", "receives_in_flight")


class TransferListener(Protocol):
    """What the machines want said. Called on the loop, in order."""

    def to_router(self, router_epoch: int, message: WorkerMessage) -> None: ...

    def to_sender(self, sender: WorkerKey, message: ReceiverMessage) -> None: ...

    def to_receiver(self, receiver: WorkerKey, message: SenderMessage) -> None: ...

    def meet(self, receiver: WorkerKey, address: str) -> None: ...

    def want_endpoint(self, receiver: WorkerKey) -> None: ...

    def warning(self, text: str) -> None: ...

    def fault(self, text: str) -> None:
        """The transfer thread has ended; nothing more will come."""


class TransferThread:
    """Opens UCX, listens and becomes the engine's listener. REQUIRES: the engine has not started.

    Posting never blocks. After a fault, and after stop(), it does nothing.

    Raises:
        ConfigError: transfer.host can be reached from other hosts, and nobody said that their network is trusted.
    """

    def __init__(
        self,
        engine: NativeEngine,
        worker: WorkerKey,
        transfer: TransferSettings,
        handover: HandoverSettings,
        settings: WorkerSettings,
        max_push_tokens: int,
    ) -> None:
        if not transfer.trusted_network and not is_loopback(transfer.host):
            raise ConfigError(
                f"transfer.host {transfer.host} can be reached from other hosts, and UCX asks nobody who he is: needs "
                "transfer.trusted_network: true, which says that nobody else reaches this network"
            )
        self._native = _engine.KvTransfer(
            engine.device,
            engine.native,
            to_native.worker(worker),
            _engine.TransportConfig(transfer.mode, listen_host=transfer.host, net_device=transfer.net_device),
            times=handover_times(handover),
            max_push_tokens=max_push_tokens,
            max_queued_tokens=settings.max_queued_tokens,
        )
        self._listener: TransferListener
        self._over = False
        self._said: dict[type, Callable[[Any], None]] = {
            _engine.action.ToRouter: lambda a: self._listener.to_router(a.router_epoch, to_wire.to_router(a.body)),
            _engine.action.ToSender: lambda a: self._listener.to_sender(
                to_wire.worker(a.sender), to_wire.to_sender(a.body)
            ),
            _engine.action.ToReceiver: lambda a: self._listener.to_receiver(
                to_wire.worker(a.receiver), to_wire.to_receiver(a.body)
            ),
            _engine.action.Meet: lambda a: self._listener.meet(to_wire.worker(a.receiver), a.address),
            _engine.WantEndpoint: lambda a: self._listener.want_endpoint(to_wire.worker(a.receiver)),
            _engine.TransferWarning: lambda a: self._listener.warning(a.text),
            _engine.TransferFault: self._on_fault,
        }

    @property
    def transport_address(self) -> str:
        return str(self._native.address)

    def start(self, listener: TransferListener) -> None:
        """Start the transfer thread; `listener` hears on this loop."""
        self._listener = listener
        self._native.start()
        asyncio.get_running_loop().add_reader(self._native.fileno(), self.deliver)

    async def stop(self) -> None:
        """Join the transfer thread. REQUIRES: the engine has stopped."""
        self._over = True
        asyncio.get_running_loop().remove_reader(self._native.fileno())
        await asyncio.to_thread(self._native.stop)

    def _post(self, event: Any) -> None:
        if not self._over:
            self._native.post(event)

    def deliver(self) -> None:
        """What the machines have said so far, to the listener. What is taken is gone: one that can't be said must not take the
        others along."""
        for outgoing in self._native.take():
            try:
                self._said[type(outgoing)](outgoing)
            except Exception:
                log.exception("not said: %.300r", outgoing)

    def _on_fault(self, fault: Any) -> None:
        self._over = True
        self._listener.fault(f"the transfer thread has ended: {fault.text}")

    # --- What sessions say and see.

    def router_connected(self, router_epoch: int) -> None:
        self._post(_engine.event.RouterConnected(router_epoch=router_epoch))

    def router_lost(self, router_epoch: int) -> None:
        self._post(_engine.event.RouterLost(router_epoch=router_epoch))

    def draining_ended(self) -> None:
        self._post(_engine.event.DrainingEnded())

    def router_said(self, router_epoch: int, message: RouterMessage) -> None:
        if (body := to_native.from_router(message)) is not None:
            self._post(_engine.event.FromRouter(router_epoch=router_epoch, body=body))

    def sender_said(self, sender: WorkerKey, message: SenderMessage) -> None:
        if (body := to_native.from_sender(message)) is not None:
            self._post(_engine.event.FromSender(sender=to_native.worker(sender), body=body))

    def sender_lost(self, sender: WorkerKey) -> None:
        self._post(_engine.event.SenderLost(sender=to_native.worker(sender)))

    def receiver_said(self, receiver: WorkerKey, message: ReceiverMessage) -> None:
        if (body := to_native.from_receiver(message)) is not None:
            self._post(_engine.event.FromReceiver(receiver=to_native.worker(receiver), body=body))

    def receiver_lost(self, receiver: WorkerKey, reason: str) -> None:
        self._post(_engine.event.ReceiverLost(receiver=to_native.worker(receiver), reason=reason))

    def heartbeat_due(self, receiver: WorkerKey) -> None:
        self._post(_engine.event.HeartbeatDue(receiver=to_native.worker(receiver)))

    def offered(self, receiver: WorkerKey, address: str, nonce: int) -> None:
        self._native.connect(to_native.worker(receiver), address, nonce)

    def remember(self, columns: Any) -> None:
        """Tokens that went to their routers, or were lost with the session: kept for a replay."""
        if not self._over:
            self._native.post_outputs(columns)

    # --- Questions: they wait for the transfer thread, some microseconds.

    def expect(self, sender: WorkerKey) -> int:
        """The nonce that admits one endpoint of `sender`."""
        return int(self._native.expect(to_native.worker(sender)))

    def counts(self) -> dict[str, Any]:
        return dict(self._native.counts())

    def trace(self) -> list[tuple[Any, ...]]:
        return list(self._native.trace())

    def is_idle(self) -> bool:
        """Nothing in any machine, nothing in flight; what is only remembered doesn't count."""
        counts = self.counts()
        sender, receiver = counts["sender"], counts["receiver"]
        return not (
            any(getattr(sender, name) for name in _SENDER_BUSY)
            or any(getattr(receiver, name) for name in _RECEIVER_BUSY)
            or counts["sends_outstanding"]
            or counts["receives_outstanding"]
        )

    def check_idle(self) -> None:
        """
        Raises:
            EngineError: something is in a machine or in flight; names it.
        """
        self._native.check_idle()


def handover_times(settings: HandoverSettings) -> Any:
    return _engine.HandoverTimes(
        lease=settings.lease_s,
        lease_margin=settings.lease_margin_s,
        repeat=settings.repeat_s,
        reserve_wait=settings.reserve_wait_s,
        router_expiry=settings.router_expiry_s,
        memory=settings.memory_s,
    )
