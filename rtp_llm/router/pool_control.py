"""PoolControl: carries out what an administrator asks of the pools, one operation at a time in the whole application.

An operation is a row of states (rtp_llm/pool_state.py). Each is told to every connected worker, of all pools, and has come
about when all have answered; what one can't do takes the others back to where they were. The first worker by id decides between
operations of two routers, as both ask it first. Who was not there follows by itself: it hears of the state when it registers.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from rtp_llm.config import Pool
from rtp_llm.errors import ConflictError, InvalidRequestError, ModelError, RtpLlmError, UnavailableError
from rtp_llm.pool_state import ApplicationState, PauseMode
from rtp_llm.router.fleet import Fleet, RemoteWorker
from rtp_llm.wire.session import ControlStep, control_worker, reset_prefix_cache

log = logging.getLogger("rtp_llm.router")

# The states that an operation goes through, by the one that holds when nobody else can change it.
Plan: TypeAlias = Callable[[ApplicationState], Sequence[ApplicationState]]

RESET_TIMEOUT_S = 10.0  # of a worker's prefix cache, which takes it a moment
LOAD_TIMEOUT_S = 1800.0  # of a step, beside what a pause may take: weights are read


class PoolControl:
    """`pause_timeout_s`: how long a pause waits for what runs, unless it is said."""

    def __init__(self, fleet: Fleet, pause_timeout_s: float) -> None:
        self._fleet = fleet
        self._pause_timeout_s = pause_timeout_s
        self._running: asyncio.Task[dict[str, Any]] | None = None

    async def close(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    def status(self) -> dict[str, Any]:
        """What was asked of the pools, as far as this router has heard."""
        state = self._fleet.state
        pools = {}
        for pool in Pool:
            own = state.of(pool)
            pause = None if own.pause is None else own.pause.value
            pools[pool.value] = {"paused": pause, "weights": own.weights or None, "version": own.version}
        return {"is_paused": state.is_paused, "number": state.number, "pools": pools}

    async def pause(self, pools: Collection[Pool], mode: PauseMode, timeout_s: float | None) -> dict[str, Any]:
        """
        Raises:
            ConflictError: another operation is under way.
            DeadlineError: what runs has not ended in time; nothing is paused.
            UnavailableError: no worker is connected.
        """
        return await self._operate(
            _Operation(self._fleet, pools, timeout_s or self._pause_timeout_s), _paused(pools, mode)
        )

    async def resume(self, pools: Collection[Pool]) -> dict[str, Any]:
        """
        Raises:
            ConflictError, UnavailableError: as pause().
        """

        def plan(now: ApplicationState) -> list[ApplicationState]:
            return [now.changed({pool: replace(now.of(pool), pause=None) for pool in pools})]

        return await self._operate(_Operation(self._fleet, pools, self._pause_timeout_s), plan)

    async def update_weights(
        self, pools: Collection[Pool], directory: str, mode: PauseMode | None, timeout_s: float | None
    ) -> dict[str, Any]:
        """The weights in `directory`, which lies at that path on each worker's host. A pool that isn't paused is paused in
        `mode` meanwhile.

        Raises:
            InvalidRequestError: they don't fit the model, or a pool isn't paused and there is no mode. Nothing has changed.
            ConflictError, DeadlineError, UnavailableError: as pause().
            RtpLlmError: a worker couldn't read them after all; the old weights are in use everywhere.
        """

        def plan(now: ApplicationState) -> list[ApplicationState]:
            [paused] = _paused(pools, mode)(now)
            # A pool that follows another one to the same directory takes its version: so they hand KV over again.
            followed = (now.of(pool) for pool in Pool if pool not in pools and now.of(pool).weights == directory)
            version = max((each.version for each in followed), default=paused.number + 1)
            updated = paused.changed(
                {pool: replace(paused.of(pool), weights=directory, version=version) for pool in pools}
            )
            resumed = updated.changed({pool: replace(updated.of(pool), pause=now.of(pool).pause) for pool in pools})
            return [paused, updated, resumed]

        operation = _Operation(self._fleet, pools, timeout_s or self._pause_timeout_s, directory)
        done = await self._operate(operation, plan)
        return done | {"version": max(self._fleet.state.of(pool).version for pool in pools)}

    async def reset_prefix_cache(self, pools: Collection[Pool]) -> dict[str, Any]:
        """No prompt finds what the workers have cached now. What runs goes on, with the blocks that it holds.

        Raises:
            UnavailableError: a worker, which it names, has not answered; the others have done it. Or none is connected.
        """
        wanted = {pool.value for pool in pools}
        workers = [worker.member for worker in self._fleet.met() if worker.hello.pool in wanted]
        if not workers:
            raise _nobody(wanted)
        asked = (
            reset_prefix_cache(each.id, each.address, self._fleet.credentials, RESET_TIMEOUT_S) for each in workers
        )
        failed = [error for error in await asyncio.gather(*asked, return_exceptions=True) if error is not None]
        for error in failed:
            if not isinstance(error, UnavailableError):
                raise error
        if failed:
            text = "; ".join(map(str, failed))
            raise UnavailableError(f"{len(failed)} of {len(workers)} prefix caches may not be reset: {text}")
        return {"status": "ok", "workers": [each.id for each in workers]}

    async def _operate(self, operation: _Operation, plan: Plan) -> dict[str, Any]:
        if self._running is not None and not self._running.done():
            raise ConflictError("another pause, resume or update of this application is under way")
        self._running = asyncio.ensure_future(operation.run(plan))
        return await asyncio.shield(self._running)  # it goes on if the client leaves


def _nobody(pools: Collection[str]) -> UnavailableError:
    return UnavailableError(f"no worker of {' or '.join(sorted(pools))} is connected")


def _paused(pools: Collection[Pool], mode: PauseMode | None) -> Plan:
    """Who is paused already stays so."""

    def plan(now: ApplicationState) -> list[ApplicationState]:
        for pool in pools:
            if mode is None and now.of(pool).pause is None:
                text = f"mode: the pool {pool.value} is not paused, so one of wait, abort, keep is needed"
                raise InvalidRequestError(text, param="mode")
        return [now.changed({pool: replace(now.of(pool), pause=now.of(pool).pause or mode) for pool in pools})]

    return plan


class _Operation:
    """`directory`: weights that workers of `pools` look at first."""

    def __init__(self, fleet: Fleet, pools: Collection[Pool], timeout_s: float, directory: str = "") -> None:
        self._fleet = fleet
        self._timeout_s = timeout_s
        self._directory = directory
        self._id = secrets.randbits(63) + 1
        self._pools = {pool.value for pool in pools}
        self._workers = fleet.met()
        self._lost: list[str] = []

    async def run(self, plan: Plan) -> dict[str, Any]:
        if not any(map(self._is_meant, self._workers)):
            raise _nobody(self._pools)
        claimed = self._workers[:1]
        try:
            await self._ask(claimed, check=True)
            claimed = self._workers
            await self._ask(self._workers[1:], check=True)
            before = self._fleet.state
            states = plan(before)
            try:
                for state in states:
                    await self._become(state)
            except RtpLlmError as error:
                log.warning("an operation on the pools failed, they go back to where they were: %s", error)
                back = replace(before, number=self._fleet.state.number + 1)
                await self._become(back, in_any_case=True)
                raise
        finally:
            await self._ask(claimed, last=True, in_any_case=True)
        done = [worker.member.id for worker in self._workers if self._is_meant(worker)]
        return {"status": "ok", "workers": done, "lost": self._lost}

    async def _become(self, state: ApplicationState, *, in_any_case: bool = False) -> None:
        self._fleet.hear(state)  # who starts from here on begins with it
        await self._ask(self._workers, state=state, in_any_case=in_any_case)

    async def _ask(
        self,
        workers: Sequence[RemoteWorker],
        *,
        check: bool = False,
        state: ApplicationState | None = None,
        last: bool = False,
        in_any_case: bool = False,
    ) -> None:
        """All at once. Raises the first error; one that is lost is none, unless nobody is left."""
        errors = [
            error
            for error in await asyncio.gather(*(self._ask_one(each, check, state, last) for each in workers))
            if error is not None
        ]
        if in_any_case:
            return
        if errors:
            raise errors[0]
        if not any(map(self._is_meant, self._workers)):
            raise UnavailableError(f"all workers were lost: {', '.join(self._lost)}")

    async def _ask_one(
        self, worker: RemoteWorker, check: bool, state: ApplicationState | None, last: bool
    ) -> RtpLlmError | None:
        step = ControlStep(
            operation=self._id,
            check_weights=self._directory if check and self._is_meant(worker) else "",
            state=state,
            pause_timeout_s=self._timeout_s,
            is_last=last,
        )
        member, credentials = worker.member, self._fleet.credentials
        timeout_s = self._timeout_s + LOAD_TIMEOUT_S
        try:
            found, failure = await control_worker(member.id, member.address, credentials, step, timeout_s)
        except UnavailableError as error:
            log.warning("lost during an operation on the pools: %s", error)
            if worker in self._workers:
                self._workers.remove(worker)
                self._lost.append(member.id)
            return None
        self._fleet.hear(found)
        if isinstance(failure, ModelError):
            return InvalidRequestError(f"path: {failure.message}", param="path")
        return failure

    def _is_meant(self, worker: RemoteWorker) -> bool:
        return worker.hello.pool in self._pools
