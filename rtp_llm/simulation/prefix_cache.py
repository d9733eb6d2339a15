"""SimulatedPrefixCache: which prompt blocks lie in a worker's KV pool, known by hash as in csrc/kv/prefix_cache.h."""

from __future__ import annotations

from collections.abc import Sequence

STORED, EVICTED = b"\1", b"\2"


class SimulatedPrefixCache:
    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._references: dict[bytes, int] = {}  # of each known block, by sequences
        self._evictable: dict[bytes, None] = {}  # that nobody refers to, least recently released first
        self._events: list[bytes] = []  # since they were taken

    @property
    def known(self) -> Sequence[bytes]:
        return tuple(self._references)

    def match(self, hashes: Sequence[bytes], most: int) -> list[bytes]:
        """The longest known run from the start, at most so many; it is referred to."""
        found: list[bytes] = []
        for hash in hashes[: max(most, 0)]:
            if hash not in self._references:
                break
            self._references[hash] += 1
            self._evictable.pop(hash, None)
            found.append(hash)
        return found

    def insert(self, hash: bytes) -> bool:
        """A computed block, with one reference. False: another one is known by that hash."""
        if hash in self._references:
            return False
        self._references[hash] = 1
        self._events.append(STORED + hash)
        return True

    def release(self, hashes: Sequence[bytes]) -> None:
        """One reference less each; the last blocks are evicted first."""
        for hash in reversed(hashes):
            self._references[hash] -= 1
            if self._references[hash] == 0:
                self._evictable[hash] = None

    def evict(self, tokens_left: int) -> None:
        """Until what nobody refers to fits into what sequences leave of the pool."""
        while len(self._evictable) * self._block_tokens > tokens_left:
            hash = next(iter(self._evictable))
            del self._evictable[hash], self._references[hash]
            self._events.append(EVICTED + hash)

    def take_events(self) -> bytes:
        events, self._events = self._events, []
        return b"".join(events)
