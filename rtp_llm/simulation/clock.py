"""Clock: what happens when. Events of one time happen in the order in which they were asked for."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Clock:
    """Seconds from zero."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._asked = 0

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        self.at(self.now + seconds, event)

    def at(self, time: float, event: Callable[[], None]) -> None:
        self._asked += 1
        heapq.heappush(self._events, (max(time, self.now), self._asked, event))

    def run(self, until: float = float("inf")) -> None:
        """Until nothing is left to happen, or `until`."""
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()
