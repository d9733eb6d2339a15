"""What a worker makes of operations: one at a time, states in order, stragglers follow by themselves."""

from __future__ import annotations

import asyncio
from typing import Any

from rtp_llm.config import Pool
from rtp_llm.errors import ModelLoadError
from rtp_llm.pool_state import ApplicationState, PauseMode, PoolState
from rtp_llm.wire.convert import application_state_message, application_state_of
from rtp_llm.wire.v1.router_pb2 import ControlReply, ControlRequest
from rtp_llm.worker import control as control_module
from rtp_llm.worker.control import Control


class ScriptedWorker:
    """Notes what it is told to do."""

    def __init__(self) -> None:
        self.did: list[Any] = []
        self.wrong = "nowhere"  # a directory that can't be read
        self.gate = asyncio.Event()  # of pauses
        self.gate.set()

    def check_weights(self, directory: str) -> None:
        if directory == self.wrong:
            raise ModelLoadError(f"{directory}: no weights")

    async def pause(self, mode: PauseMode, timeout_s: float) -> None:
        await self.gate.wait()
        self.did.append(str(mode))

    def resume(self) -> None:
        self.did.append("resume")

    async def update_weights(self, directory: str, version: int) -> None:
        self.check_weights(directory)
        self.did.append((directory, version))


def state(number: int, decode: PoolState | None = None, base: str = "/base") -> ApplicationState:
    return ApplicationState(number=number, base=base, decode=decode or PoolState())


class Rig:
    def __init__(self, start: ApplicationState | None = None) -> None:
        self.worker = ScriptedWorker()
        self.control = Control(self.worker, Pool.DECODE, start or state(0), pause_timeout_s=1)

    async def ask(self, operation: int, wanted: ApplicationState | None = None, **fields: Any) -> ControlReply:
        request = ControlRequest(operation=operation, timeout_s=1, **fields)
        if wanted is not None:
            request.state.CopyFrom(application_state_message(wanted))
        return await self.control.asked(request)


PAUSED = PoolState(pause=PauseMode.WAIT)
UPDATED = PoolState(weights="/new", version=2, pause=PauseMode.WAIT)
AFTER = PoolState(weights="/new", version=2)


async def test_a_worker_goes_from_state_to_state_of_its_own_pool() -> None:
    rig = Rig()
    for number, each in enumerate((PAUSED, UPDATED, AFTER), 1):
        reply = await rig.ask(1, state(number, each))
        assert not reply.error and application_state_of(reply.state) == state(number, each)
    assert rig.worker.did == ["wait", ("/new", 2), "resume"]
    await rig.ask(1, ApplicationState(number=4, base="/base", prefill=PAUSED, decode=AFTER))
    assert rig.worker.did == ["wait", ("/new", 2), "resume"]  # the other pool's pause
    await rig.ask(1, state(5))  # the configuration's weights again
    assert rig.worker.did[3:] == ["wait", ("", 0), "resume"]


async def test_an_older_state_or_another_base_is_a_conflict() -> None:
    rig = Rig(state(3))
    for wrong in (state(2, PAUSED), state(9, PAUSED, base="/other")):
        reply = await rig.ask(1, wrong)
        assert reply.error == "ConflictError" and rig.worker.did == []
        assert application_state_of(reply.state) == state(3)  # so that who asks learns of it


async def test_a_second_operation_is_a_conflict_until_the_first_is_over() -> None:
    rig = Rig()
    assert not (await rig.ask(1)).error
    assert (await rig.ask(2, state(1, PAUSED))).error == "ConflictError"
    assert rig.worker.did == []
    assert not (await rig.ask(1, last=True)).error
    assert not (await rig.ask(2, state(1, PAUSED))).error


async def test_an_operation_whose_router_is_gone_is_over_after_a_while_but_not_within_a_step(monkeypatch: Any) -> None:
    monkeypatch.setattr(control_module, "CLAIM_S", 0.02)
    rig = Rig()
    rig.worker.gate.clear()
    pausing = asyncio.ensure_future(rig.ask(1, state(1, PAUSED)))
    await asyncio.sleep(0.05)
    assert (await rig.ask(2)).error == "ConflictError"
    rig.worker.gate.set()
    await pausing
    assert (await rig.ask(2)).error == "ConflictError"
    await asyncio.sleep(0.05)
    assert not (await rig.ask(2)).error


async def test_a_step_goes_on_when_who_asked_for_it_leaves() -> None:
    rig = Rig()
    rig.worker.gate.clear()
    asked = asyncio.ensure_future(rig.ask(1, state(1, PAUSED)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    rig.worker.gate.set()
    reply = await rig.ask(1, state(2, PAUSED))
    assert not reply.error and rig.worker.did == ["wait"]


async def test_a_directory_that_cannot_be_read_is_said_and_changes_nothing() -> None:
    rig = Rig()
    rig.worker.wrong = "/new"
    reply = await rig.ask(1, check_weights="/new")
    assert (reply.error, reply.message) == ("ModelLoadError", "/new: no weights")
    await rig.ask(1, state(1, PAUSED))
    reply = await rig.ask(1, state(2, UPDATED))
    assert reply.error == "ModelLoadError" and application_state_of(reply.state) == state(1, PAUSED)
    await rig.ask(1, state(3))
    assert rig.worker.did == ["wait", "resume"]


async def test_a_worker_that_starts_in_a_pause_is_paused_and_keeps_the_weights_that_it_was_built_with() -> None:
    rig = Rig(state(2, UPDATED))
    await rig.control.start()
    assert rig.worker.did == ["wait"]
    await rig.ask(1, state(3, AFTER))
    assert rig.worker.did == ["wait", "resume"]


async def test_who_missed_an_update_follows_by_itself() -> None:
    rig = Rig()
    rig.control.heard(state(3, AFTER))
    await asyncio.sleep(0.01)
    assert rig.worker.did == ["wait", ("/new", 2), "resume"] and rig.control.state.number == 3
    rig.control.heard(state(2, PAUSED))
    rig.control.heard(state(9, PAUSED, base="/other"))
    await asyncio.sleep(0.01)
    assert rig.control.state.number == 3 and len(rig.worker.did) == 3
    await rig.ask(1)
    rig.control.heard(state(4, PAUSED))  # an operation is under way: it brings what is next
    await asyncio.sleep(0.01)
    assert rig.control.state.number == 3


async def test_who_cannot_follow_goes_on_as_it_was_and_does_not_try_at_once_again() -> None:
    rig = Rig()
    rig.worker.wrong = "/new"
    for _ in range(2):
        rig.control.heard(state(3, AFTER))
        await asyncio.sleep(0.01)
    assert rig.worker.did == ["wait", "resume"] and rig.control.state == state(0)
