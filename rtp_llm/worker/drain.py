"""Drain: a worker's way out, or into a pause. It takes what was placed before each router knew, finishes it, and then leaves,
or waits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from rtp_llm.pool_state import PauseMode
from rtp_llm.within import within
from rtp_llm.worker.routers import Routers

log = logging.getLogger("rtp_llm.worker")


class Drain:
    """`is_idle()` is asked when something has ended (`look`): nothing runs, waits or is in flight here. `ended()`: routers may
    place work here again."""

    def __init__(self, routers: Routers, is_idle: Callable[[], bool], ended: Callable[[], None]) -> None:
        self._routers = routers
        self._is_idle = is_idle
        self._ended = ended
        self._done = asyncio.Event()
        self._given_up = False
        self._pause: PauseMode | None = None  # what it is for

    def begin(self, pause: PauseMode | None = None) -> None:
        """Ask the routers for no more work: for good, or for a pause. May be called again."""
        if not self._given_up:
            self._done.clear()
        self._pause = pause
        self._routers.start_draining(pause)
        self.look()

    def end(self) -> None:
        """After a pause."""
        self._routers.stop_draining()
        self._ended()

    async def wait(self, timeout_s: float) -> bool:
        """Until all routers have acknowledged and the worker is idle. False: `timeout_s` came first, or it has failed."""
        try:
            await within(timeout_s, self._done.wait())
        except asyncio.TimeoutError:
            waiting = self._routers.unacknowledged
            level = logging.ERROR if self._pause is None else logging.WARNING
            log.log(
                level, "drain: not idle after %.0f s; not acknowledged by: %s", timeout_s, ", ".join(waiting) or "none"
            )
            return False
        return not self._given_up

    def give_up(self) -> None:
        """The worker has failed: nothing here will end any more."""
        self._given_up = True
        self._done.set()

    def look(self) -> None:
        """Something may have ended."""
        if self._routers.is_draining and not self._routers.unacknowledged and self._is_idle():
            self._done.set()
