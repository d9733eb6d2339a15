"""Pause: a worker that takes nothing new and makes no step; and what may happen to it meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from rtp_llm.engine import NativeEngine
from rtp_llm.errors import DeadlineError, EngineError
from rtp_llm.loaded_weights import WeightsSource
from rtp_llm.pool_state import PauseMode
from rtp_llm.worker.drain import Drain

log = logging.getLogger("rtp_llm.worker")

LOOK_S = 0.005  # between two looks at what is to end
EMPTY_S = 30.0  # within which what was given up has left: a handover under way takes some seconds


class Pause:
    """`is_idle()`: nothing runs, waits or is in flight here; `fault(text)`: this worker can't serve any more."""

    def __init__(
        self, engine: NativeEngine, drain: Drain, is_idle: Callable[[], bool], fault: Callable[[str], None]
    ) -> None:
        self._engine = engine
        self._drain = drain
        self._is_idle = is_idle
        self._fault = fault

    async def begin(self, mode: PauseMode, timeout_s: float) -> None:
        """Take nothing new; then, but for KEEP, wait until what the routers have placed here is over (for ABORT they end it);
        then make no step more.

        Raises:
            DeadlineError: `timeout_s` came first. New work is taken again.
        """
        self._drain.begin(mode)
        if mode is not PauseMode.KEEP and not await self._drain.wait(timeout_s):
            self._drain.end()
            raise DeadlineError(f"what runs has not ended within {timeout_s:g} s: nothing is paused")
        self._engine.pause()
        while not (self._engine.load().paused or self._engine.failure):  # noqa: ASYNC110 - the engine has no loop
            await asyncio.sleep(LOOK_S)
        log.info("paused (%s)", mode)

    def end(self) -> None:
        self._engine.resume()
        self._drain.end()
        log.info("resumed")

    async def empty(self) -> None:
        """Give up what is here: routers try it again, with the tokens so far, where and when somebody takes it.

        Raises:
            EngineError: something has not left in time.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + EMPTY_S
        while not self._is_idle():
            if loop.time() > end:
                raise EngineError(f"what was given up is still here after {EMPTY_S:g} s")
            self._engine.give_up_all()  # anew: a handover that was granted before may join
            await asyncio.sleep(LOOK_S)

    async def update(self, source: WeightsSource, adopted: Callable[[], None]) -> None:
        """Other weights in place of these. `adopted()` is called when they count. REQUIRES: paused.

        Raises:
            ModelError: they can't be read. The old ones are in use.
            EngineError: something that was given up has not left in time. The old ones are in use.
        """
        await self.empty()
        try:
            await asyncio.to_thread(self._engine.weights.overwrite, source)
        except EngineError as error:
            self._fault(error.message)
            raise
        await self.empty()  # of what came from a router that had not heard of the pause
        # From the last look on nothing is awaited: no message comes in between.
        self._engine.adopt_weights()
        adopted()
        log.info("weights of %s, version %d", source.path, source.version)
