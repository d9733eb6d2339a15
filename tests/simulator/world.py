"""Virtual time, and processes that can be stopped or killed."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable


class Violation(AssertionError):  # noqa: N818 - what a walk found, not a fault of the simulator
    """Something that must never happen."""


def note(error: Exception, text: str) -> None:
    """What tracebacks print below an error: BaseException.add_note, which Python 3.10 lacks."""
    error.__notes__ = [*getattr(error, "__notes__", []), text]  # type: ignore[attr-defined]


class Process:
    """What is scheduled for a stopped process waits until it goes on; for a dead one it is dropped."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.stopped = False
        self._waiting: list[Callable[[], None]] = []

    def run(self, work: Callable[[], None]) -> None:
        if not self.alive:
            return
        if self.stopped:
            self._waiting.append(work)
        else:
            work()

    def go_on(self) -> None:
        self.stopped = False
        waiting, self._waiting = self._waiting, []
        for work in waiting:
            self.run(work)


class World:
    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.random = random.Random(seed)
        self.now = 100.0
        self.trace: deque[str] | None = deque(maxlen=100_000) if trace else None
        self._heap: list[tuple[float, int, Process | None, Callable[[], None]]] = []
        self._order = itertools.count()
        self.num_events = 0

    def log(self, *parts: object) -> None:
        if self.trace is not None:
            self.trace.append(" ".join([f"{self.now:9.3f}", *map(str, parts)]))

    def at(self, time: float, process: Process | None, work: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (max(time, self.now), next(self._order), process, work))

    def after(self, delay: float, process: Process | None, work: Callable[[], None]) -> None:
        self.at(self.now + delay, process, work)

    def between(self, low: float, high: float) -> float:
        return self.random.uniform(low, high)

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def run(self, until: float, *, done: Callable[[], bool]) -> bool:
        """Runs to `until`, or to the first moment of quiet (checked every 0.25 s) at which `done`."""
        check_at = self.now
        while self._heap and self._heap[0][0] <= until:
            if self._heap[0][0] >= check_at:
                if done():
                    return True
                check_at = self._heap[0][0] + 0.25
            self.now, _, process, work = heapq.heappop(self._heap)
            self.num_events += 1
            if process is None:
                work()
            else:
                process.run(work)
        return done()
