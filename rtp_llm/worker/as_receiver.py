"""The worker as R: its sessions with the workers that send KV to it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from rtp_llm.errors import ProtocolError
from rtp_llm.wire.convert import worker_of
from rtp_llm.wire.endpoint import SessionTiming
from rtp_llm.wire.key import WorkerKey
from rtp_llm.wire.server import Acceptor
from rtp_llm.wire.session import SenderEndpoint, sender_acceptor
from rtp_llm.wire.v1.peer_pb2 import PeerHello, ReceiverMessage, SenderMessage
from rtp_llm.worker.identity import Identity

log = logging.getLogger("rtp_llm.worker")


class SenderListener(Protocol):
    """Called on the loop; must not block."""

    def sender_lost(self, sender: WorkerKey) -> None: ...

    def sender_said(self, sender: WorkerKey, message: SenderMessage) -> None: ...


class AsReceiver:
    """Workers that have met this one as senders. One whose layout differs is refused by what differs.

    `expect(sender)` draws the nonce that admits one data-plane endpoint of it.
    """

    def __init__(
        self,
        identity: Identity,
        expect: Callable[[WorkerKey], int],
        listener: SenderListener,
        timing: SessionTiming,
    ) -> None:
        self._identity = identity
        self._expect = expect
        self._listener = listener
        self._sessions: dict[WorkerKey, SenderSession] = {}
        self.acceptor: Acceptor[ReceiverMessage, SenderMessage] = sender_acceptor(
            identity.key, self.answer, self._accept, timing
        )

    def send(self, sender: WorkerKey, message: ReceiverMessage) -> bool:
        """False: it is not connected; it repeats what it must."""
        session = self._sessions.get(sender)
        return session is not None and session.endpoint.send(message)

    def answer(self, other: PeerHello) -> PeerHello:
        """This worker's hello to a sender, with a fresh nonce.

        Raises:
            ProtocolError: the layouts differ.
        """
        if difference := self._identity.difference(other):
            raise ProtocolError(difference)
        hello = self._identity.hello()
        hello.transport_nonce = self._expect(worker_of(other.worker))
        return hello

    def _accept(self, hello: PeerHello, endpoint: SenderEndpoint) -> SenderSession:
        self._identity.compare_numerics(hello)
        self._identity.compare_limits(hello)
        return SenderSession(worker_of(hello.worker), endpoint, self)

    # --- For SenderSession.

    def connected(self, session: SenderSession) -> None:
        self._sessions[session.sender] = session

    def said(self, session: SenderSession, message: SenderMessage) -> None:
        if message.WhichOneof("message") == "hello":
            session.endpoint.send(ReceiverMessage(hello=self.answer(message.hello)))
        else:
            self._listener.sender_said(session.sender, message)

    def lost(self, session: SenderSession) -> None:
        self.acceptor.forget(session.endpoint)
        if self._sessions.get(session.sender) is session:
            del self._sessions[session.sender]
        self._listener.sender_lost(session.sender)


class SenderSession:
    """One incarnation of a sender: SessionEvents."""

    def __init__(self, sender: WorkerKey, endpoint: SenderEndpoint, as_receiver: AsReceiver) -> None:
        self.sender = sender
        self.endpoint = endpoint
        self._as_receiver = as_receiver

    def connected(self, hello: SenderMessage, *, resumed: bool) -> None:
        log.info("sender %s %s", self.sender, "is back" if resumed else "is there")
        self._as_receiver.connected(self)

    def message(self, message: SenderMessage) -> None:
        self._as_receiver.said(self, message)

    def broken(self, reason: str) -> None:
        log.info("session with sender %s broke: %s", self.sender, reason)

    def lost(self, reason: str) -> None:
        log.info("sender %s is lost: %s", self.sender, reason)
        self._as_receiver.lost(self)

    def refused(self, reason: str) -> None:
        raise AssertionError("only the end that connects is refused")
