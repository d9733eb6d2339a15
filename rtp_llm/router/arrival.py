"""When the HTTP request that is being handled came in: all tasks that handle it know."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

_arrived: ContextVar[float] = ContextVar("arrived")


def note_arrival() -> None:
    """In the task that hears the request, before its body is read."""
    _arrived.set(asyncio.get_running_loop().time())


def arrived() -> float:
    """On the loop's clock; now, where no HTTP request is behind it."""
    return _arrived.get(asyncio.get_running_loop().time())
