"""The worker as S: its sessions with the workers that it sends KV to."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from rtp_llm.wire.convert import worker_of
from rtp_llm.wire.credentials import Credentials
from rtp_llm.wire.endpoint import SessionTiming
from rtp_llm.wire.key import WorkerKey
from rtp_llm.wire.session import ReceiverSession
from rtp_llm.wire.v1.peer_pb2 import PeerHello, ReceiverMessage, SenderMessage
from rtp_llm.worker.identity import Identity

log = logging.getLogger("rtp_llm.worker")


class ReceiverListener(Protocol):
    """Called on the loop; must not block."""

    def receiver_said(self, receiver: WorkerKey, message: ReceiverMessage) -> None: ...

    def receiver_lost(self, receiver: WorkerKey, reason: str) -> None:
        """Lost, unreachable, or refused for what differs."""

    def heartbeat_due(self, receiver: WorkerKey) -> None:
        """The machine that knows the grants answers with a heartbeat to send."""

    def offered(self, receiver: WorkerKey, address: str, nonce: int) -> None:
        """The receiver takes one data-plane endpoint that begins with this nonce."""


class AsSender:
    """One session per receiver that this worker was told to meet, until it is lost; the next Meet begins anew."""

    def __init__(
        self, identity: Identity, listener: ReceiverListener, timing: SessionTiming, credentials: Credentials
    ) -> None:
        self.credentials = credentials
        self._identity = identity
        self._listener = listener
        self._timing = timing
        self._meetings: dict[WorkerKey, Meeting] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def meet(self, receiver: WorkerKey, address: str) -> None:
        """Begin a session, unless there is one. The epoch counts: another incarnation at the address is no substitute."""
        if receiver not in self._meetings:
            self._meetings[receiver] = Meeting(receiver, address, self._identity, self, self._timing)

    def send(self, receiver: WorkerKey, message: SenderMessage) -> bool:
        """False: not connected; the machine repeats what it must. Before the first connection it waits for that."""
        meeting = self._meetings.get(receiver)
        return meeting is not None and meeting.send(message)

    def leave_all(self, reason: str) -> None:
        """End all sessions: the next Meet begins anew, with this worker's hello as it is then."""
        for meeting in list(self._meetings.values()):
            self.over(meeting, reason)

    def ask_endpoint(self, receiver: WorkerKey) -> None:
        """Ask for a fresh nonce. Without a connection nothing happens: the hello of the next one holds it."""
        if (meeting := self._meetings.get(receiver)) is not None:
            meeting.session.ask_hello()

    async def close(self) -> None:
        await asyncio.gather(*(meeting.session.close() for meeting in self._meetings.values()), *self._closing)
        self._meetings.clear()

    # --- For Meeting.

    def greeted(self, receiver: WorkerKey, hello: PeerHello) -> None:
        # What isn't text is no address: the transport says so, by the name of the receiver.
        address = hello.transport_address.decode("ascii", "backslashreplace")
        self._listener.offered(receiver, address, hello.transport_nonce)

    def heartbeat_due(self, receiver: WorkerKey) -> None:
        self._listener.heartbeat_due(receiver)

    def said(self, receiver: WorkerKey, message: ReceiverMessage) -> None:
        self._listener.receiver_said(receiver, message)

    def over(self, meeting: Meeting, reason: str) -> None:
        """The receiver is lost or can't be met. Its session is dropped, so that a return of it is a new meeting."""
        if self._meetings.get(meeting.receiver) is meeting:
            del self._meetings[meeting.receiver]
            task = asyncio.ensure_future(meeting.session.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
            self._listener.receiver_lost(meeting.receiver, reason)


class Meeting:
    """One incarnation of a receiver: SessionEvents."""

    def __init__(
        self, receiver: WorkerKey, address: str, identity: Identity, as_sender: AsSender, timing: SessionTiming
    ) -> None:
        self.receiver = receiver
        self._identity = identity
        self._as_sender = as_sender
        # Said before the first connection, so that a first handover doesn't wait for a repeat; None since then. The time to
        # be lost bounds it.
        self._early: list[SenderMessage] | None = []
        self.session = ReceiverSession(
            receiver,
            address,
            sender_epoch=identity.key.epoch,
            hello=identity.hello,
            heartbeat_due=lambda: as_sender.heartbeat_due(receiver),
            events=self,
            timing=timing,
            credentials=as_sender.credentials,
        )
        self.session.start()

    def send(self, message: SenderMessage) -> bool:
        if self._early is not None:
            self._early.append(message)
            return True
        return self.session.send(message)

    def connected(self, hello: ReceiverMessage, *, resumed: bool) -> None:
        found = worker_of(hello.hello.worker)
        if found != self.receiver:
            self._as_sender.over(self, f"{found} answers instead of {self.receiver}")
            return
        if difference := self._identity.difference(hello.hello):
            self._as_sender.over(self, difference)
            return
        log.info("receiver %s %s", self.receiver, "is back" if resumed else "is there")
        self._identity.compare_numerics(hello.hello)
        self._identity.compare_limits(hello.hello)
        self._as_sender.greeted(self.receiver, hello.hello)
        early, self._early = self._early, None
        for message in early or ():
            self.session.send(message)

    def message(self, message: ReceiverMessage) -> None:
        if message.WhichOneof("message") == "hello":
            self._as_sender.greeted(self.receiver, message.hello)
        else:
            self._as_sender.said(self.receiver, message)

    def broken(self, reason: str) -> None:
        log.info("session with receiver %s broke: %s", self.receiver, reason)

    def lost(self, reason: str) -> None:
        log.info("receiver %s is lost: %s", self.receiver, reason)
        self._as_sender.over(self, reason)

    def refused(self, reason: str) -> None:
        log.warning("receiver %s refuses this worker: %s", self.receiver, reason)
        self._as_sender.over(self, reason)
