"""Control: what administrators ask of this worker: to pause, to go on, to serve other weights. One operation at a time."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from rtp_llm.config import Pool
from rtp_llm.errors import ConflictError, RtpLlmError
from rtp_llm.pool_state import ApplicationState, PauseMode, PoolState
from rtp_llm.wire.convert import application_state_message, application_state_of
from rtp_llm.wire.v1.router_pb2 import ControlReply, ControlRequest

log = logging.getLogger("rtp_llm.worker")

CLAIM_S = 15.0  # an operation whose router says nothing more for so long is over
RETRY_S = 30.0  # after a state that was heard of could not be taken over


class Controlled(Protocol):
    """As Worker does it."""

    def check_weights(self, directory: str) -> None:
        """Reads files. Raises ModelError."""

    async def pause(self, mode: PauseMode, timeout_s: float) -> None:
        """Raises DeadlineError: what runs has not ended in time; the worker is not paused."""

    def resume(self) -> None: ...

    async def update_weights(self, directory: str, version: int) -> None:
        """While it is paused; `directory` empty: the configuration's. Raises ModelError: the old weights are in use."""


class Control:
    """Brings `worker` of `pool` from one state to the next. One event loop."""

    def __init__(self, worker: Controlled, pool: Pool, state: ApplicationState, pause_timeout_s: float) -> None:
        """`state` is what the worker has been built by, but for a pause."""
        self._worker = worker
        self._pool = pool
        own = state.of(pool)
        self._weights = PoolState(weights=own.weights, version=own.version)
        self._pause: PauseMode | None = None
        self.state = state
        self._pause_timeout_s = pause_timeout_s
        self._changing = asyncio.Lock()
        self._operation = 0  # 0: none
        self._claimed_until = 0.0  # unless a step of it is under way
        self._steps = 0
        self._retry_at = 0.0
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Before anybody knows this worker: it begins paused where its pool is."""
        await self._become(self.state, self._pause_timeout_s)

    async def asked(self, request: ControlRequest) -> ControlReply:
        """One step of an operation. It goes on if the router that asks leaves."""
        return await asyncio.shield(asyncio.ensure_future(self._step(request)))

    def heard(self, state: ApplicationState) -> None:
        """Of a state that others have: it is taken over, unless an operation that is under way here brings the next one."""
        now = asyncio.get_running_loop().time()
        is_newer = state.base == self.state.base and state.number > self.state.number
        if not is_newer or self._is_claimed(now) or now < self._retry_at or self._changing.locked():
            return
        self._following = asyncio.ensure_future(self._follow(state))

    async def _follow(self, state: ApplicationState) -> None:
        try:
            await self._become(state, self._pause_timeout_s)
        except RtpLlmError as error:
            self._retry_at = asyncio.get_running_loop().time() + RETRY_S
            log.error("state %d of the application can't be taken over: %s", state.number, error)

    async def _step(self, request: ControlRequest) -> ControlReply:
        self._steps += 1
        try:
            self._claim(request.operation)
            if request.check_weights:
                await asyncio.to_thread(self._worker.check_weights, request.check_weights)
            if request.HasField("state"):
                await self._become(application_state_of(request.state), request.timeout_s)
            reply = ControlReply()
        except RtpLlmError as error:
            reply = ControlReply(error=type(error).__name__, message=error.message)
        finally:
            self._steps -= 1
            if request.operation == self._operation:
                self._claimed_until = asyncio.get_running_loop().time() + CLAIM_S
                if request.last:
                    self._operation = 0
        reply.state.CopyFrom(application_state_message(self.state))
        return reply

    def _claim(self, operation: int) -> None:
        if operation != self._operation and self._is_claimed(asyncio.get_running_loop().time()):
            raise ConflictError("another pause, resume or update of this application is under way")
        self._operation = operation

    def _is_claimed(self, now: float) -> bool:
        return self._operation != 0 and (self._steps > 1 or now < self._claimed_until)

    async def _become(self, state: ApplicationState, timeout_s: float) -> None:
        async with self._changing:
            if state.base != self.state.base or state.number < self.state.number:
                raise ConflictError(
                    f"state {state.number} of {state.base!r} is older than {self.state.number} of {self.state.base!r}"
                )
            wanted = state.of(self._pool)
            other_weights = (wanted.weights, wanted.version) != (self._weights.weights, self._weights.version)
            pause = wanted.pause or (PauseMode.WAIT if other_weights else None)
            if pause is not None and self._pause is None:
                await self._worker.pause(pause, timeout_s)
                self._pause = pause
            try:
                if other_weights:
                    await self._worker.update_weights(wanted.weights, wanted.version)
                    self._weights = wanted
            except RtpLlmError:
                if self.state.of(self._pool).pause is None and wanted.pause is None:
                    self._resume()
                raise
            if wanted.pause is None and self._pause is not None:
                self._resume()
            self.state = state

    def _resume(self) -> None:
        self._worker.resume()
        self._pause = None
