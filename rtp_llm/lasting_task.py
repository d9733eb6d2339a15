"""LastingTask: a background task that goes on until it is closed, and whose death is not silent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from rtp_llm.errors import TaskError

log = logging.getLogger("rtp_llm")


class LastingTask:
    """Runs `work` on this loop. If it ends by itself, that is logged at once, and `check()` raises from then on: its owner
    passes that on to a health check."""

    def __init__(self, what: str, work: Coroutine[Any, Any, object]) -> None:
        self._what = what
        self._failure = ""
        self._task = asyncio.ensure_future(work)
        self._task.add_done_callback(self._ended)

    def check(self) -> None:
        """
        Raises:
            TaskError: it has ended by itself; says why.
        """
        if self._failure:
            raise TaskError(self._failure)

    def cancel(self) -> None:
        """Idempotent."""
        self._task.cancel()

    async def close(self) -> None:
        """Cancel it and wait until it has ended. Idempotent."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _ended(self, task: asyncio.Task[object]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        reason = "it came to its end" if error is None else f"{type(error).__name__}: {error}"
        self._failure = f"{self._what} has stopped: {reason}"
        log.error("%s", self._failure, exc_info=error)
