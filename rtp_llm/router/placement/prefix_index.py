"""PrefixIndex: how much of a prompt lies in whose prefix cache. Exact: what the caches' events say, in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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

LONGEST = 16  # workers with the longest hits, before it is known which of them may be candidates


class PrefixIndex:
    """REQUIRES: told of every event. A policy that owns one sets `watches_caches`."""

    def __init__(self) -> None:
        self._native = native_index()
        self.caches: dict[str, int] = {}  # the native index's numbers, by worker
        self.workers: dict[int, str] = {}  # by number
        self.block_tokens: dict[str, int] = {}  # by worker
        self._sizes = Counter[int]()  # of blocks

    def observe(self, events: Sequence[FleetEvent]) -> None:
        for event in events:
            if isinstance(event, CacheChanged):
                if (cache := self.caches.get(event.id)) is not None:
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
        if not self.caches or query.block_hashes is None:
            return NO_HITS
        found = {size: self._native.find(query.block_hashes(size)) for size in self._sizes}
        return FoundHits(self, found, query)

    def hashes(self, worker: str) -> bytes:
        """All that it holds, in no order."""
        held: bytes = self._native.held_by(self.caches[worker])
        return held

    def _cache_of(self, worker: str) -> int:
        if worker not in self.caches:
            self.caches[worker] = number = self._native.add_cache()
            self.workers[number] = worker
        return self.caches[worker]

    def _sized(self, view: WorkerView) -> None:
        before = self.block_tokens.get(view.id)
        if before == view.block_tokens:
            return
        self._forget_size(before)
        self.block_tokens[view.id] = view.block_tokens
        self._sizes[view.block_tokens] += 1

    def _forget_size(self, size: int | None) -> None:
        if size is not None:
            self._sizes[size] -= 1
            if not self._sizes[size]:
                del self._sizes[size]

    def _gone(self, worker: str) -> None:
        self._forget_size(self.block_tokens.pop(worker, None))
        if (number := self.caches.pop(worker, None)) is not None:
            del self.workers[number]
            self._native.remove_cache(number)


class PrefixHits:
    """Nobody has anything."""

    def tokens(self, view: WorkerView) -> int:
        """Of the prompt that a worker has not to compute, or not to get; its last token is always computed."""
        return 0

    def longest(self, count: int) -> Mapping[str, int]:
        """The tokens of those who have the most, equals by lot; more than `count` where pools have blocks of different size."""
        return {}

    def holders(self, tokens: int) -> Iterator[str]:
        """Of the LONGEST who have the most, equals by lot, those who have more than `tokens`; asked again, the same."""
        return iter(())


NO_HITS = PrefixHits()


class FoundHits(PrefixHits):
    def __init__(self, index: PrefixIndex, found: Mapping[int, Any], query: PlacementQuery) -> None:
        """`found`: the native index's answer by tokens of a block."""
        self._index, self._found = index, found
        self._before_last = query.prompt_tokens - 1
        self._random = query.random
        self._longest: list[tuple[int, list[tuple[int, int]]]] | None = None  # (cache, blocks) by tokens of a block
        self._blocks = {size: memoryview(each.blocks).cast("i") for size, each in found.items()}

    def tokens(self, view: WorkerView) -> int:
        cache = self._index.caches.get(view.id)
        if cache is None:
            return 0
        size = view.block_tokens
        blocks = self._blocks[size]
        if not blocks:
            return 0
        tokens = blocks[cache] * size
        return tokens if tokens <= self._before_last else self._saved(tokens, size)

    def longest(self, count: int) -> Mapping[str, int]:
        index, first = self._index, self._random.getrandbits(16)
        longest: dict[str, int] = {}
        for size, found in self._found.items():
            for cache, blocks in found.longest(count, first):
                worker = index.workers[cache]
                if index.block_tokens[worker] == size:
                    longest[worker] = self._saved(blocks * size, size)
        return longest

    def holders(self, tokens: int) -> Iterator[str]:
        index = self._index
        if self._longest is None:
            first = self._random.getrandbits(16)
            self._longest = [(size, found.longest(LONGEST, first)) for size, found in self._found.items()]
        for size, longest in self._longest:
            for cache, blocks in longest:
                if self._saved(blocks * size, size) <= tokens:
                    break  # most first
                worker = index.workers[cache]
                if index.block_tokens[worker] == size:
                    yield worker

    def _saved(self, tokens: int, size: int) -> int:
        return min(tokens, self._before_last // size * size)
