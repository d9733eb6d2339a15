"""What becomes of a background task that ends though it should not."""

import asyncio

import pytest

from rtp_llm.errors import TaskError
from rtp_llm.lasting_task import LastingTask


async def fail() -> None:
    raise OSError("gone")


async def end() -> None: ...


async def last() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(("work", "why"), [(fail, "OSError: gone"), (end, "it came to its end")])
async def test_its_end_is_logged_at_once_and_kept(work: object, why: str, caplog: pytest.LogCaptureFixture) -> None:
    task = LastingTask("the watch", work())  # type: ignore[operator]
    task.check()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(TaskError, match=f"the watch has stopped: {why}"):
        task.check()
    assert [record.getMessage() for record in caplog.records] == [f"the watch has stopped: {why}"]


async def test_one_that_was_closed_has_not_failed(caplog: pytest.LogCaptureFixture) -> None:
    task = LastingTask("the watch", last())
    await asyncio.sleep(0)
    await task.close()
    await task.close()
    task.check()
    assert caplog.records == []
