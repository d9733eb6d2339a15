"""within: a result, or a timeout; and never a cancellation that is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def within(timeout_s: float, awaitable: Awaitable[T]) -> T:
    """As asyncio.wait_for, which before Python 3.12 loses a cancellation that comes together with the result: a task that was
    to end goes on then, and who waits for its end waits for ever (python/cpython#86296).

    Raises:
        asyncio.TimeoutError: `timeout_s` came first; `awaitable` is cancelled, and has ended.
    """
    task = asyncio.ensure_future(awaitable)
    try:
        await asyncio.wait([task], timeout=timeout_s)
        if task.done():
            return task.result()
        raise asyncio.TimeoutError
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen: a cancellation came with it
