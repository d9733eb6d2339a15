"""When a Load goes to which router."""

from typing import Any

import pytest

from rtp_llm.wire.endpoint import SessionTiming
from rtp_llm.wire.key import WorkerKey
from rtp_llm.wire.v1.router_pb2 import Busy, Load, RouterMessage, StepSample, WorkerHello, WorkerMessage
from rtp_llm.worker.routers import LOAD_INTERVAL_S, Routers, RouterSession


class ScriptedEndpoint:
    def __init__(self, router_epoch: int) -> None:
        self.other_epoch = router_epoch
        self.sent: list[WorkerMessage] = []

    def send(self, message: WorkerMessage) -> bool:
        self.sent.append(message)
        return True


class Listener:
    def router_connected(self, router_epoch: int) -> None: ...

    def router_lost(self, router_epoch: int) -> None: ...

    def router_said(self, router_epoch: int, message: RouterMessage) -> None: ...


class Rig:
    """One worker, two routers, a clock that the test sets. Each has got LOAD at 0."""

    def __init__(self) -> None:
        self.routers = Routers(WorkerKey("w", 1), WorkerHello, Listener(), SessionTiming(), expiry_s=10)
        self.endpoints = [ScriptedEndpoint(1), ScriptedEndpoint(2)]
        self.sessions = [RouterSession(f"r{each.other_epoch}", each, self.routers) for each in self.endpoints]  # type: ignore[arg-type]
        for session in self.sessions:
            self.routers.connected(session)
        self.publish(LOAD, at=LOAD_INTERVAL_S * 2, taken={})
        for session in self.sessions:
            session.load_sent = 0.0
        self.loads()

    def publish(self, load: Load, at: float, taken: dict[int, int]) -> float | None:
        """`taken`: slots of others, by router epoch."""
        return self.routers.publish(load, lambda router_epoch: taken.get(router_epoch, 0), at)

    def loads(self) -> list[int]:
        """How many Loads each router has got since the last call."""
        counts = [sum(message.HasField("load") for message in each.sent) for each in self.endpoints]
        for each in self.endpoints:
            each.sent.clear()
        return counts


LOAD = Load(queued_tokens=5, max_queued_tokens=10, running=3, blocks_free=100, slots=4)


def changed(**fields: Any) -> Load:
    load = Load()
    load.CopyFrom(LOAD)
    for name, value in fields.items():
        if isinstance(value, StepSample):
            load.step.CopyFrom(value)
        else:
            setattr(load, name, value)
    return load


@pytest.fixture
async def rig() -> Rig:
    return Rig()


async def test_a_load_that_says_the_same_is_not_sent(rig: Rig) -> None:
    assert rig.publish(LOAD, at=5.0, taken={}) is None
    assert rig.loads() == [0, 0]


@pytest.mark.parametrize("fields", [{"queued_tokens": 6}, {"running": 2}, {"waiting": 1}, {"blocks_free": 99}])
async def test_a_figure_that_changed_goes_out_when_the_interval_is_over(rig: Rig, fields: dict[str, int]) -> None:
    due = rig.publish(changed(**fields), at=0.25 * LOAD_INTERVAL_S, taken={})
    assert due == pytest.approx(0.75 * LOAD_INTERVAL_S) and rig.loads() == [0, 0]
    assert rig.publish(changed(**fields), at=LOAD_INTERVAL_S, taken={}) is None
    assert rig.loads() == [1, 1]
    assert rig.publish(changed(**fields), at=1.5 * LOAD_INTERVAL_S, taken={}) is None and rig.loads() == [0, 0]
    assert rig.publish(LOAD, at=1.5 * LOAD_INTERVAL_S, taken={}) == pytest.approx(0.5 * LOAD_INTERVAL_S)


async def test_what_flips_whether_a_prompt_is_taken_goes_out_at_once(rig: Rig) -> None:
    assert rig.publish(changed(queued_tokens=10), at=0.01, taken={}) is None
    assert rig.loads() == [1, 1]
    assert rig.publish(changed(queued_tokens=9), at=0.02, taken={}) is None
    assert rig.loads() == [1, 1]


async def test_what_flips_whether_a_handover_is_taken_goes_out_at_once_to_whom_it_concerns(rig: Rig) -> None:
    rig.publish(LOAD, at=0.01, taken={2: 4})
    assert rig.loads() == [0, 1]
    rig.publish(LOAD, at=0.02, taken={2: 3})
    assert rig.loads() == [0, 1]


async def test_a_step_alone_is_no_reason_for_a_load(rig: Rig) -> None:
    assert rig.publish(changed(step=StepSample(decode_rows=3, seconds=0.01)), at=5.0, taken={}) is None
    assert rig.loads() == [0, 0]
    rig.publish(changed(step=StepSample(decode_rows=3, seconds=0.01), running=4), at=5.0, taken={})
    assert rig.loads() == [1, 1] and rig.sessions[0].load.step.decode_rows == 3


async def test_who_heard_busy_gets_a_load_at_once_though_it_is_the_same(rig: Rig) -> None:
    rig.routers.send(1, WorkerMessage(busy=Busy()))
    assert rig.publish(LOAD, at=0.01, taken={}) is None
    assert rig.loads() == [1, 0]
