"""CacheWatch: what one router has been told of this worker's prefix cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from rtp_llm.prefix import CACHE_EVENT_BYTES
from rtp_llm.wire.v1.router_pb2 import CacheEvents, CacheSnapshot, WorkerMessage


class PrefixCache(Protocol):
    """As NativeEngine has it."""

    def last_cache_event(self) -> int: ...

    def cache_events(self, first: int) -> bytes | None: ...

    def cache_snapshot(self) -> tuple[int, bytes]: ...


class CacheWatch:
    def __init__(self, next: int) -> None:
        """`next`: number of the first event that the router misses; 0: all that is cached."""
        self._next = next

    def misses_something(self, cache: PrefixCache) -> bool:
        return self._next != cache.last_cache_event() + 1

    def tell(self, cache: PrefixCache, send: Callable[[WorkerMessage], bool]) -> None:
        """Send what is new, all that is cached where the log has gone on too far. What isn't sent is told the next time."""
        events = cache.cache_events(self._next) if self._next > 0 else None
        if events is not None:
            next = self._next + len(events) // CACHE_EVENT_BYTES
            message = WorkerMessage(cache_events=CacheEvents(first=self._next, events=events))
        else:
            number, hashes = cache.cache_snapshot()
            next = number + 1
            message = WorkerMessage(cache_snapshot=CacheSnapshot(number=number, hashes=hashes))
        if send(message):
            self._next = next
