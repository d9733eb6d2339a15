"""When a Load goes to which router."""

from typing import Any

import pytest

from rtp_llm.pool_state import PauseMode
from rtp_llm.wire.endpoint import SessionTiming
from rtp_llm.wire.key import WorkerKey
from rtp_llm.wire.v1.router_pb2 import (
    Busy,
    Draining,
    DrainingAcknowledged,
    Load,
    RouterMessage,
    StepSample,
    WatchCache,
    WorkerHello,
    WorkerMessage,
)
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

    def __init__(self) -> None:
        self.heard: list[int] = []  # routers that have said something

    def router_said(self, router_epoch: int, message: RouterMessage) -> None:
        self.heard.append(router_epoch)


class Rig:
    """One worker, two routers, a clock that the test sets. Each has got LOAD at 0."""

    def __init__(self) -> None:
        listener = Listener()
        self.heard = listener.heard
        self.routers = Routers(WorkerKey("w", 1), WorkerHello, listener, SessionTiming(), expiry_s=10)
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


class ScriptedCache:
    """Events are numbered letters; the log reaches back to `oldest`."""

    def __init__(self) -> None:
        self.events = b""
        self.oldest = 1

    def happen(self, count: int) -> None:
        for _ in range(count):
            self.events += b"\1" + (len(self.events) // 17 + 1).to_bytes(16, "little")

    def last_cache_event(self) -> int:
        return len(self.events) // 17

    def cache_events(self, first: int) -> bytes | None:
        return self.events[(first - 1) * 17 :] if self.oldest <= first <= self.last_cache_event() + 1 else None

    def cache_snapshot(self) -> tuple[int, bytes]:
        return self.last_cache_event(), b"all that is there"


def watch(rig: Rig, router: int, next: int = 0) -> None:
    rig.sessions[router].message(RouterMessage(watch_cache=WatchCache(next=next)))


def told(rig: Rig, router: int) -> list[tuple[str, int, int]]:
    """(kind, number, bytes) of what the router has been told of the cache since the last call."""
    heard = []
    for message in rig.endpoints[router].sent:
        if message.HasField("cache_snapshot"):
            heard.append(("snapshot", message.cache_snapshot.number, len(message.cache_snapshot.hashes)))
        elif message.HasField("cache_events"):
            heard.append(("events", message.cache_events.first, len(message.cache_events.events)))
    rig.endpoints[router].sent.clear()
    return heard


async def test_who_watches_the_cache_hears_all_of_it_and_then_what_is_new(rig: Rig) -> None:
    cache = ScriptedCache()
    cache.happen(3)
    watch(rig, 0)
    assert rig.routers.publish_cache(cache, now=1.0) is None
    assert told(rig, 0) == [("snapshot", 3, 17)] and told(rig, 1) == []
    assert rig.routers.publish_cache(cache, now=2.0) is None and told(rig, 0) == []
    cache.happen(2)
    rig.routers.publish_cache(cache, now=3.0)
    assert told(rig, 0) == [("events", 4, 2 * 17)] and told(rig, 1) == []


async def test_a_router_that_asks_late_hears_what_is_there_and_no_other_again(rig: Rig) -> None:
    cache = ScriptedCache()
    watch(rig, 0)
    rig.routers.publish_cache(cache, now=1.0)
    cache.happen(4)
    watch(rig, 1)
    rig.routers.publish_cache(cache, now=2.0)
    assert told(rig, 0) == [("snapshot", 0, 17), ("events", 1, 4 * 17)]
    assert told(rig, 1) == [("snapshot", 4, 17)]


async def test_what_is_new_in_the_cache_waits_for_the_interval(rig: Rig) -> None:
    cache = ScriptedCache()
    cache.happen(1)
    watch(rig, 0)
    rig.routers.publish_cache(cache, now=1.0)
    cache.happen(1)
    assert rig.routers.publish_cache(cache, now=1.0 + 0.25 * LOAD_INTERVAL_S) == pytest.approx(0.75 * LOAD_INTERVAL_S)
    assert rig.routers.publish_cache(cache, now=1.001 + LOAD_INTERVAL_S) is None
    assert told(rig, 0) == [("snapshot", 1, 17), ("events", 2, 17)]


async def test_a_router_that_misses_events_gets_them_or_all_where_they_are_too_old(rig: Rig) -> None:
    cache = ScriptedCache()
    cache.happen(9)
    watch(rig, 0, next=6)
    rig.routers.publish_cache(cache, now=1.0)
    cache.oldest = 7
    watch(rig, 1, next=6)
    rig.routers.publish_cache(cache, now=1.0)
    assert told(rig, 0) == [("events", 6, 4 * 17)]
    assert told(rig, 1) == [("snapshot", 9, 17)]


async def test_cache_events_that_a_session_did_not_take_are_told_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ScriptedCache()
    watch(rig, 0)
    rig.routers.publish_cache(cache, now=1.0)
    cache.happen(2)
    with monkeypatch.context() as broken:
        broken.setattr(rig.endpoints[0], "send", lambda message: False)
        rig.routers.publish_cache(cache, now=2.0)
    cache.happen(1)
    rig.routers.publish_cache(cache, now=3.0)
    assert told(rig, 0)[-1] == ("events", 1, 3 * 17)


async def test_after_a_reconnect_the_cache_is_told_to_who_asks_again(rig: Rig) -> None:
    cache = ScriptedCache()
    watch(rig, 0)
    rig.routers.publish_cache(cache, now=1.0)
    rig.sessions[0].connected(RouterMessage(), resumed=True)
    told(rig, 0)
    cache.happen(1)
    rig.routers.publish_cache(cache, now=2.0)
    assert told(rig, 0) == []
    watch(rig, 0)
    rig.routers.publish_cache(cache, now=2.0)
    assert told(rig, 0) == [("snapshot", 1, 17)]


def drainings(rig: Rig) -> list[list[Draining]]:
    """What each router was told since the last call."""
    told = [[message.draining for message in each.sent if message.HasField("draining")] for each in rig.endpoints]
    for each in rig.endpoints:
        each.sent.clear()
    return told


def acknowledge(rig: Rig, router: int, round: int) -> None:
    acknowledged = DrainingAcknowledged(round=round)
    rig.sessions[router].message(RouterMessage(draining_acknowledged=acknowledged))


async def test_an_acknowledgement_counts_for_the_draining_that_it_answers_and_for_no_other() -> None:
    rig = Rig()
    rig.routers.start_draining(PauseMode.WAIT)
    assert drainings(rig) == [[Draining(round=0, pause="wait")]] * 2
    assert rig.routers.unacknowledged == ["r1", "r2"]
    acknowledge(rig, 0, 0)
    assert rig.routers.unacknowledged == ["r2"]
    rig.routers.stop_draining()
    assert drainings(rig) == [[Draining(round=0, ended=True)]] * 2
    acknowledge(rig, 1, 0)  # late: it is over
    assert rig.heard == [1]
    rig.routers.start_draining()
    assert drainings(rig) == [[Draining(round=1)]] * 2
    acknowledge(rig, 1, 0)  # late: of the one before
    assert rig.routers.unacknowledged == ["r1", "r2"] and rig.heard == [1]
    acknowledge(rig, 0, 1)
    acknowledge(rig, 1, 1)
    assert rig.routers.unacknowledged == [] and rig.heard == [1, 1, 2]


async def test_a_router_that_connects_in_a_pause_is_told_of_it_and_one_that_connects_later_is_not() -> None:
    rig = Rig()
    rig.routers.start_draining(PauseMode.KEEP)
    drainings(rig)
    rig.routers.connected(rig.sessions[0])
    assert drainings(rig) == [[Draining(round=0, pause="keep")], []]
    rig.routers.stop_draining()
    drainings(rig)
    rig.routers.connected(rig.sessions[0])
    assert drainings(rig) == [[], []]
