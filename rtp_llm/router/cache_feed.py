"""CacheFeed: what one worker says of its prefix cache, without gaps."""

from __future__ import annotations

from rtp_llm.errors import ProtocolError
from rtp_llm.prefix import BLOCK_HASH_BYTES, CACHE_EVENT_BYTES
from rtp_llm.router.placement import CacheChanged, CacheReset


class CacheFeed:
    """A new one hears nothing but a snapshot. Whatever doesn't follow on what came before is a gap: then `next` is what to ask
    the worker for (WatchCache), and everything is dropped until an answer fits."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self.next = 0  # number of the first event that is missing; 0: all
        self.has_gap = True

    def snapshot(self, number: int, hashes: bytes) -> CacheReset:
        """All that is cached after event `number`.

        Raises:
            ProtocolError: it isn't made of block hashes.
        """
        if len(hashes) % BLOCK_HASH_BYTES:
            raise ProtocolError(f"a cache snapshot of {len(hashes)} bytes, a hash has {BLOCK_HASH_BYTES}")
        self.next, self.has_gap = number + 1, False
        return CacheReset(self._worker, hashes)

    def events(self, first: int, events: bytes) -> CacheChanged | None:
        """What is new of `events`, which are numbered from `first`; None: nothing, or they don't follow.

        Raises:
            ProtocolError: these are no events, or numbered from 0.
        """
        count, rest = divmod(len(events), CACHE_EVENT_BYTES)
        if rest or first == 0:
            raise ProtocolError(f"{len(events)} bytes of cache events from number {first}")
        self.has_gap = first > self.next
        known = self.next - first
        if self.has_gap or known >= count:
            return None
        self.next = first + count
        return CacheChanged(self._worker, events[known * CACHE_EVENT_BYTES :])
