from __future__ import annotations

import asyncio

import pytest

from rtp_llm.within import within


async def test_a_result_an_error_and_a_timeout() -> None:
    assert await within(1.0, asyncio.sleep(0, "done")) == "done"
    failing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    failing.set_exception(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await within(1.0, failing)
    late = asyncio.ensure_future(asyncio.sleep(60))
    with pytest.raises(asyncio.TimeoutError):
        await within(0.01, late)
    assert late.cancelled()


@pytest.mark.parametrize("fails", [False, True])
async def test_a_cancellation_that_comes_with_the_result_counts(fails: bool) -> None:
    result: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    waiting = asyncio.ensure_future(within(60.0, result))
    await asyncio.sleep(0)
    if fails:
        result.set_exception(ValueError("unseen"))
    else:
        result.set_result("done")
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()


async def test_what_is_waited_for_ends_with_its_waiter() -> None:
    inner = asyncio.ensure_future(asyncio.sleep(60))
    waiting = asyncio.ensure_future(within(60.0, inner))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled() and inner.cancelled()
