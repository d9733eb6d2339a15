"""PrefixIndex: how much of a prompt lies in whose prefix cache. Exact: what the caches' events say, in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from rtp_llm.prefix import native_index
from rtp_llm.router.placement.policy import (
    CacheChanged,
    CacheReset,
    FleetEvent,
    PlacementQuery,
    ViewChanged,
    WorkerGone,
    WorkerView,
)


class PrefixIndex:
    """REQUIRES: told of every event. A policy that owns one sets `watches_caches`."""

    def __init__(self) -> None:
        self._native: Any = None  # made with the first cache
        self._caches: dict[str, int] = {}  # the native index's numbers, by worker
        self._workers: dict[int, str] = {}
        self._block_tokens: dict[str, int] = {}  # by worker
        self._sizes = Counter[int]()  # of blocks

    def observe(self, events: Sequence[FleetEvent]) -> None:
        for event in events:
            if isinstance(event, CacheChanged):
                if (cache := self._caches.get(event.id)) is not None:
                    self._native.apply(cache, event.events)
            elif isinstance(event, CacheReset):
                cache = self._cache_of(event.id)
                self._native.reset(cache, event.hashes)
            elif isinstance(event, ViewChanged):
                self._sized(event.view)
            elif isinstance(event, WorkerGone):
                self._gone(event.id)

    def hits(self, query: PlacementQuery) -> PrefixHits:
        """Of one decision. The prompt is hashed here, if anybody has anything."""
        if not self._caches or query.block_hashes is None:
            return NO_HITS
        return FoundHits(self._native, self._caches, self._workers, [*self._sizes], query)

    def hashes(self, worker: str) -> bytes:
        """All that it holds, in no order."""
        held: bytes = self._native.held_by(self._caches[worker])
        return held

    @property
    def memory_bytes(self) -> int:
        return 0 if self._native is None else int(self._native.memory_bytes)

    def _cache_of(self, worker: str) -> int:
        if self._native is None:
            self._native = native_index()
        if worker not in self._caches:
            self._caches[worker] = number = self._native.add_cache()
            self._workers[number] = worker
        return self._caches[worker]

    def _sized(self, view: WorkerView) -> None:
        before = self._block_tokens.get(view.id)
        if before == view.block_tokens:
            return
        self._forget_size(before)
        self._block_tokens[view.id] = view.block_tokens
        self._sizes[view.block_tokens] += 1

    def _forget_size(self, size: int | None) -> None:
        if size is not None:
            self._sizes[size] -= 1
            if not self._sizes[size]:
                del self._sizes[size]

    def _gone(self, worker: str) -> None:
        self._forget_size(self._block_tokens.pop(worker, None))
        if (number := self._caches.pop(worker, None)) is not None:
            del self._workers[number]
            self._native.remove_cache(number)


class PrefixHits:
    """Nobody has anything."""

    def tokens(self, view: WorkerView) -> int:
        """Of the prompt that a worker has not to compute, or not to get; its last token is always computed."""
        return 0

    def longest(self, count: int) -> Sequence[str]:
        """The workers with the longest hits, equals by lot; more than `count` where pools have blocks of different size."""
        return ()


NO_HITS = PrefixHits()


class FoundHits(PrefixHits):
    def __init__(
        self, native: Any, caches: dict[str, int], workers: dict[int, str], sizes: list[int], query: PlacementQuery
    ) -> None:
        assert query.block_hashes is not None
        self._caches, self._workers = caches, workers
        self._before_last = query.prompt_tokens - 1
        self._random = query.random
        self._found = {size: native.find(query.block_hashes(size)) for size in sizes}

    def tokens(self, view: WorkerView) -> int:
        cache = self._caches.get(view.id)
        if cache is None:
            return 0
        size = view.block_tokens
        blocks: int = self._found[size].blocks(cache)
        return min(blocks, self._before_last // size) * size

    def longest(self, count: int) -> Sequence[str]:
        return list(dict.fromkeys(self._longest(count)))

    def _longest(self, count: int) -> Iterator[str]:
        for found in self._found.values():
            yield from map(self._workers.__getitem__, found.longest(count, self._random.getrandbits(16)))
