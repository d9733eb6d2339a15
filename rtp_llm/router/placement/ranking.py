"""Ranking: workers in the order of a key, best (least) first."""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from typing import Any

Key = Any  # of one ordered type in one ranking
NEAR = 1.1  # of the best: as good as the best


class Ranking:
    """Changes and look-ups take a binary search (and the move of a few KB of pointers)."""

    def __init__(self) -> None:
        self._entries: list[tuple[Key, str]] = []
        self._keys: dict[str, Key] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, worker: str) -> bool:
        return worker in self._keys

    def __iter__(self) -> Iterator[str]:
        """Ids, best first."""
        return (worker for _, worker in self._entries)

    def first(self, count: int | None) -> list[str]:
        """So many, best first; None: all."""
        return [worker for _, worker in self._entries[:count]]

    def __getitem__(self, place: int) -> str:
        return self._entries[place][1]

    @property
    def best(self) -> Key:
        """REQUIRES: not empty."""
        return self._entries[0][0]

    def put(self, worker: str, key: Key) -> None:
        """Enters `worker`, or moves it."""
        if worker in self._keys:
            if self._keys[worker] == key:
                return
            self.remove(worker)
        self._keys[worker] = key
        insort(self._entries, (key, worker))

    def remove(self, worker: str) -> None:
        """Nothing if it isn't there."""
        if worker in self._keys:
            del self._entries[bisect_left(self._entries, (self._keys.pop(worker), worker))]

    def count_up_to(self, key: Key) -> int:
        """How many have this key or a better one."""
        return bisect_right(self._entries, key, key=_key_of)


def _key_of(entry: tuple[Key, str]) -> Key:
    return entry[0]


def nth(rankings: Sequence[Ranking], place: int) -> str:
    """Of one ranking after the other. REQUIRES: 0 <= place < the sum of their lengths."""
    for ranking in rankings:
        if place < len(ranking):
            return ranking[place]
        place -= len(ranking)
    raise IndexError(f"place {place} beyond the last ranking")


def near_best(rankings: Sequence[Ranking], draw: random.Random) -> str:
    """One within 10% of the best of all, by lot: routers that know the same must not herd. REQUIRES: they aren't all empty."""
    filled = [ranking for ranking in rankings if ranking]
    limit = min(ranking.best for ranking in filled) * NEAR
    counts = [ranking.count_up_to(limit) for ranking in filled]
    place = draw.randrange(sum(counts))
    for ranking, count in zip(filled, counts, strict=True):
        if place < count:
            return ranking[place]
        place -= count
    raise AssertionError(f"place {place} beyond {counts}")
