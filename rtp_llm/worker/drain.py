"""Drain: a worker's way out. It takes what was placed before each router knew, finishes it, and leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from rtp_llm.worker.routers import Routers

log = logging.getLogger("rtp_llm.worker")


class Drain:
    """`is_idle()` is asked when something has ended (`look`): nothing runs, waits or is in flight here."""

    def __init__(self, routers: Routers, is_idle: Callable[[], bool]) -> None:
        self._routers = routers
        self._is_idle = is_idle
        self._done = asyncio.Event()
        self._given_up = False

    async def run(self, timeout_s: float) -> bool:
        """Ask the routers for no more work, then wait until all have acknowledged and the worker is idle. False: `timeout_s`
        came first, or the worker has failed. May be called again."""
        self._routers.start_draining()
        self.look()
        try:
            await asyncio.wait_for(self._done.wait(), timeout_s)
        except asyncio.TimeoutError:
            waiting = self._routers.unacknowledged
            log.error("drain: not idle after %.0f s; not acknowledged by: %s", timeout_s, ", ".join(waiting) or "none")
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
