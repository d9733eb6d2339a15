"""Identity: what a worker says of itself to those it meets."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from rtp_llm.errors import InvalidRequestError
from rtp_llm.wire.convert import worker_message
from rtp_llm.wire.key import WorkerKey
from rtp_llm.wire.v1.peer_pb2 import PeerHello
from rtp_llm.wire.v1.router_pb2 import WorkerHello

log = logging.getLogger("rtp_llm.worker")


def draw_epoch() -> int:
    """64 random bits, never 0: 0 means unknown."""
    return secrets.randbits(64) or 1


@dataclass(kw_only=True)
class Identity:
    """Fixed from the start of the process, but for what follows from the weights.

    `describe(here, there)` names what differs between two layouts' JSON."""

    key: WorkerKey
    pool: str
    model: str
    model_digest: str
    layout_json: str
    layout_fingerprint: str
    numerics_id: str
    max_model_len: int
    block_tokens: int
    transport_address: str
    describe: Callable[[str, str], str]
    on_numerics_mismatch: Callable[[], None]
    peer_address: str = ""  # known when the server listens
    _warned: set[str] = field(default_factory=set)

    def worker_hello(self) -> WorkerHello:
        return WorkerHello(
            worker=worker_message(self.key),
            pool=self.pool,
            model=self.model,
            model_digest=self.model_digest,
            layout_fingerprint=self.layout_fingerprint,
            numerics_id=self.numerics_id,
            max_model_len=self.max_model_len,
            block_tokens=self.block_tokens,
            peer_address=self.peer_address,
        )

    def hello(self) -> PeerHello:
        """To a peer, without a nonce."""
        return PeerHello(
            worker=worker_message(self.key),
            layout_fingerprint=self.layout_fingerprint,
            layout_json=self.layout_json,
            numerics_id=self.numerics_id,
            max_model_len=self.max_model_len,
            transport_address=self.transport_address.encode(),
        )

    def difference(self, other: PeerHello) -> str:
        """What keeps two workers from exchanging KV; empty: nothing."""
        if other.layout_fingerprint == self.layout_fingerprint:
            return ""
        try:
            difference = self.describe(self.layout_json, other.layout_json)
        except InvalidRequestError as error:
            return f"layout_json: {error}"
        return difference or f"layout_fingerprint: {self.layout_fingerprint} here, {other.layout_fingerprint:.80} there"

    def compare_limits(self, other: PeerHello) -> None:
        """Workers of unequal limits may work together: a router places nothing beyond them, and a receiver grants nothing that
        it could not run. Said once a limit."""
        if other.max_model_len != self.max_model_len and f"{other.max_model_len}" not in self._warned:
            self._warned.add(f"{other.max_model_len}")
            log.warning(
                "max_model_len is %d here and %d at worker %s: longer requests run at one of them only",
                self.max_model_len,
                other.max_model_len,
                other.worker.id,
            )

    def compare_numerics(self, other: PeerHello) -> None:
        """Unequal ids may work together, warned once an id and counted at each meeting."""
        if other.numerics_id == self.numerics_id:
            return
        self.on_numerics_mismatch()
        if other.numerics_id not in self._warned:
            self._warned.add(other.numerics_id)
            log.warning(
                "worker %s computes with %s, this one with %s: answers may differ after a handover",
                other.worker.id,
                other.numerics_id,
                self.numerics_id,
            )
