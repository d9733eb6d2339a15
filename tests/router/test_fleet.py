"""What a router knows of its workers, over sessions that the test speaks for."""

import asyncio
import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from rtp_llm.directory import Member, StaticMembership
from rtp_llm.errors import EngineError, TaskError
from rtp_llm.metrics import RouterMetrics
from rtp_llm.pool_state import ApplicationState, PauseMode, PoolState
from rtp_llm.router import fleet as fleet_module
from rtp_llm.router.fleet import Fleet, RemoteWorker
from rtp_llm.router.placement import (
    CacheChanged,
    CacheReset,
    FleetEvent,
    PlacementQuery,
    StepMeasured,
    ViewChanged,
    WorkerGone,
    WorkerView,
)
from rtp_llm.router.placement.least_loaded import LeastLoaded
from rtp_llm.router.placement.step_cost import Step
from rtp_llm.router.request_machine import Busy, Committed, Failed, Fenced, Output, Released, WorkerSaid
from rtp_llm.wire import session as session_module
from rtp_llm.wire.convert import key_message
from rtp_llm.wire.key import RequestKey, WorkerKey
from rtp_llm.wire.session import SessionTiming
from rtp_llm.wire.v1 import router_pb2 as pb
from rtp_llm.wire.v1.types_pb2 import WorkerKey as WorkerKeyMessage

KEY = RequestKey(7, 1, 0, 0)


class ScriptedSession:
    """In place of the wire: connected whenever the test says so."""

    def __init__(self, *_: Any, events: RemoteWorker, **__: Any) -> None:
        self.events = events
        self.is_connected = False
        self.failure = ""
        self.protocol = 2
        self.closed = False

    def start(self) -> None: ...

    def send(self, message: pb.RouterMessage) -> bool:
        return self.is_connected

    async def close(self) -> None:
        self.closed = True


class Listener:
    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []
        self.observed: list[FleetEvent] = []

    def said(self, said: WorkerSaid) -> None:
        self.heard.append(("said", said))

    def draining(self, worker: WorkerKey, pause: PauseMode | None) -> None:
        self.heard.append(("draining", worker) if pause is None else (f"paused: {pause}", worker))

    def undrained(self, worker: WorkerKey) -> None:
        self.heard.append(("undrained", worker))

    def resumed(self, worker: WorkerKey) -> None:
        self.heard.append(("resumed", worker))

    def lost(self, worker: WorkerKey) -> None:
        self.heard.append(("lost", worker))

    def observe(self, event: FleetEvent) -> None:
        self.observed.append(event)

    def room_changed(self) -> None:
        self.heard.append(("room_changed", None))


def member(name: str) -> Member:
    return Member(id=name, epoch=0, pool="decode", address=f"{name}:1")


@pytest.fixture
def membership() -> StaticMembership:
    return StaticMembership([member("a"), member("b")])


@pytest.fixture
async def fleet(monkeypatch: pytest.MonkeyPatch, membership: StaticMembership) -> AsyncIterator[Fleet]:
    monkeypatch.setattr(fleet_module, "WorkerSession", ScriptedSession)
    metrics = RouterMetrics(CollectorRegistry())
    made = Fleet(membership, model="m", router_id="r", router_epoch=7, timing=SessionTiming(), metrics=metrics)
    made.listener = Listener()
    made.start()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    yield made
    await made.close()


def connect(
    fleet: Fleet, name: str, *, epoch: int = 1, model: str = "m", digest: str = "d", **fields: Any
) -> RemoteWorker:
    worker = fleet._workers[name]
    worker.session.is_connected = True  # type: ignore[misc]
    hello = pb.WorkerHello(
        worker=WorkerKeyMessage(id=name, epoch=epoch), pool="decode", model=model, model_digest=digest, **fields
    )
    worker.connected(pb.WorkerMessage(hello=hello), resumed=False)
    worker.message(pb.WorkerMessage(load=pb.Load(max_queued_tokens=100)))
    return worker


@pytest.mark.parametrize("message", [pb.Load, pb.WorkerHello])
def test_a_worker_says_nothing_that_no_router_reads(message: Any) -> None:
    rooms = Path(fleet_module.__file__).parent, Path(session_module.__file__).parent
    text = "".join(path.read_text() for room in rooms for path in room.glob("*.py"))
    read = set(re.findall(r"\b(?:load|hello)\.(\w+)", text))
    assert [field.name for field in message.DESCRIPTOR.fields if field.name not in read] == []


async def test_a_view_has_the_version_that_its_session_speaks(fleet: Fleet) -> None:
    fleet._workers["a"].session.protocol = 1  # type: ignore[misc]
    connect(fleet, "a")
    assert fleet.snapshot["a"].protocol == 1


async def test_a_worker_counts_once_its_load_is_known(fleet: Fleet) -> None:
    assert not fleet.snapshot
    connect(fleet, "a")
    assert list(fleet.snapshot) == ["a"]


async def test_a_worker_of_another_model_or_of_other_weights_gets_nothing(fleet: Fleet) -> None:
    connect(fleet, "a")
    connect(fleet, "b", model="other")
    assert list(fleet.snapshot) == ["a"]
    connect(fleet, "b", epoch=2, digest="other weights")
    assert list(fleet.snapshot) == ["a"]
    connect(fleet, "b", epoch=3)
    assert list(fleet.snapshot) == ["a", "b"]


async def test_a_placement_counts_until_the_worker_speaks_of_it(fleet: Fleet) -> None:
    worker = connect(fleet, "a")
    worker.note_submitted(KEY, 30, runs=False)
    worker.note_receives(KEY, 30)
    assert (worker.view().queued_tokens, worker.view().running) == (30, 2)
    worker.forget(KEY)
    assert (worker.view().queued_tokens, worker.view().running) == (0, 0)


async def test_free_slots_are_those_that_others_left_less_this_routers_own_to_the_end_of_each(fleet: Fleet) -> None:
    worker = connect(fleet, "a")
    keys = [RequestKey(7, number, 0, 0) for number in range(3)]
    said = pb.WorkerMessage(load=pb.Load(max_queued_tokens=100, slots=5, slots_of_others=2))
    worker.message(said)
    assert worker.view().free_slots == 3
    worker.note_receives(keys[0], 30)
    worker.note_submitted(keys[1], 30, runs=True)
    worker.note_submitted(keys[2], 30, runs=False)  # it only prefills here
    assert worker.view().free_slots == 1
    for key in keys:
        worker.forget(key)  # it runs, and speaks
    worker.message(said)
    assert worker.view().free_slots == 1
    for key in keys:
        worker.note_over(key)
    assert worker.view().free_slots == 3
    worker.message(pb.WorkerMessage(load=pb.Load(max_queued_tokens=100, slots=5, slots_of_others=9)))
    assert worker.view().free_slots == 0


DECODE_SEQUENCES = (10, 12, 14, 16)


@pytest.mark.parametrize("loads_between", [False, True])
@pytest.mark.parametrize("membership", [StaticMembership([member(f"d{i}") for i in range(4)])])
async def test_handovers_under_way_count_whatever_loads_come_in_between(fleet: Fleet, loads_between: bool) -> None:
    """64 placements within one prefill: R can't know of them yet, so its Loads say nothing of them."""
    workers = [connect(fleet, f"d{i}") for i in range(4)]
    loads = [pb.Load(max_queued_tokens=100, slots=64, running=running) for running in DECODE_SEQUENCES]
    for worker, load in zip(workers, loads, strict=True):
        worker.message(pb.WorkerMessage(load=load))
    draw, chosen, policy = random.Random(0), Counter[str](), LeastLoaded()
    prefill = WorkerView(id="p", epoch=1, pool="prefill", max_queued_tokens=100)
    for number in range(64):
        policy.observe([ViewChanged(view) for view in (prefill, *fleet.snapshot.values())])
        placement = policy.choose({"p": prefill, **fleet.snapshot}, PlacementQuery(prompt_tokens=8, random=draw))
        assert placement is not None and placement.receiver is not None
        chosen[placement.receiver.id] += 1
        receiver = fleet.find(WorkerKey(placement.receiver.id, 1))
        assert receiver is not None
        receiver.note_receives(RequestKey(7, number, 0, 0), 8)
        if loads_between:
            for worker, load in zip(workers, loads, strict=True):
                worker.message(pb.WorkerMessage(load=load))
    ends = [running + chosen[f"d{i}"] for i, running in enumerate(DECODE_SEQUENCES)]
    assert max(ends) <= min(ends) * 1.1 + 1  # (52 + 64) / 4 each, but for the policy's 10%


@pytest.mark.parametrize("membership", [StaticMembership([member(f"d{i}") for i in range(64)])])
async def test_a_load_renews_the_view_of_its_worker_alone(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = [connect(fleet, f"d{i}", max_model_len=100) for i in range(64)]
    before, listener = dict(fleet.snapshot), fleet.listener
    assert isinstance(listener, Listener)
    assert fleet.longest_request() == 100
    renewed: list[str] = []
    view_of = RemoteWorker.view
    monkeypatch.setattr(RemoteWorker, "view", lambda worker: renewed.append(worker.key.id) or view_of(worker))
    listener.observed.clear()
    workers[5].message(pb.WorkerMessage(load=pb.Load(max_queued_tokens=100, running=3)))
    assert renewed == ["d5"] and listener.observed == [ViewChanged(fleet.snapshot["d5"])]
    assert fleet.snapshot["d5"].running == 3
    assert all(fleet.snapshot[id] is before[id] for id in before if id != "d5")


async def test_the_step_that_a_load_brings_is_told_after_its_figures(fleet: Fleet) -> None:
    worker, listener = connect(fleet, "a"), fleet.listener
    assert isinstance(listener, Listener)
    step = pb.StepSample(decode_rows=2, context_tokens=30, prefill_rows=4, attention_pairs=10, seconds=0.5)
    worker.message(pb.WorkerMessage(load=pb.Load(max_queued_tokens=100, running=3, step=step)))
    assert listener.observed[-2:] == [ViewChanged(fleet.snapshot["a"]), StepMeasured("a", Step(2, 30, 4, 10), 0.5)]


async def test_context_is_this_routers_own_and_what_the_used_blocks_say_of_others(fleet: Fleet) -> None:
    worker = connect(fleet, "a")
    worker.note_receives(KEY, 30)
    assert (fleet.snapshot["a"].sequences, fleet.snapshot["a"].context_tokens) == (1, 30)
    load = pb.Load(max_queued_tokens=100, slots=9, slots_of_others=3, blocks_total=10, blocks_free=5, block_tokens=8)
    worker.message(pb.WorkerMessage(load=load))
    assert (fleet.snapshot["a"].sequences, fleet.snapshot["a"].context_tokens) == (4, 30 + 40 * 3 // 4)
    worker.note_over(KEY)
    assert (fleet.snapshot["a"].sequences, fleet.snapshot["a"].context_tokens) == (3, 40)


async def test_whose_session_broke_is_not_in_the_snapshot_until_it_is_back(fleet: Fleet) -> None:
    worker, listener = connect(fleet, "a"), fleet.listener
    assert isinstance(listener, Listener)
    worker.session.is_connected = False  # type: ignore[misc]
    worker.broken("cut")
    assert not fleet.snapshot and listener.observed[-1] == WorkerGone("a")
    worker.session.is_connected = True  # type: ignore[misc]
    hello = pb.WorkerHello(worker=WorkerKeyMessage(id="a", epoch=1), pool="decode", model="m", model_digest="d")
    worker.connected(pb.WorkerMessage(hello=hello), resumed=True)
    assert listener.observed[-1] == ViewChanged(fleet.snapshot["a"])


async def test_room_is_said_of_a_load_under_which_something_can_be_placed(fleet: Fleet) -> None:
    worker, listener = connect(fleet, "a"), fleet.listener
    assert isinstance(listener, Listener)
    for load, said in [
        (pb.Load(max_queued_tokens=100, queued_tokens=100), []),
        (pb.Load(max_queued_tokens=100, queued_tokens=99), [("room_changed", None)]),
        (pb.Load(max_queued_tokens=100, queued_tokens=100, slots=1), [("room_changed", None)]),
    ]:
        listener.heard.clear()
        worker.message(pb.WorkerMessage(load=load))
        assert listener.heard == said


async def test_when_all_workers_of_the_weights_that_serve_are_gone_others_serve(fleet: Fleet) -> None:
    first, second = connect(fleet, "a"), connect(fleet, "b", digest="other weights")
    assert list(fleet.snapshot) == ["a"] and second.state == "refused"
    first.lost("gone")
    assert list(fleet.snapshot) == ["b"] and second.state == "live"


async def test_a_busy_worker_accepts_again_after_its_next_load(fleet: Fleet) -> None:
    worker = connect(fleet, "a")
    before = worker.load
    worker.message(pb.WorkerMessage(busy=pb.Busy(key=key_message(KEY), queued_tokens=40, limit=100)))
    assert not worker.view().accepts and before.queued_tokens == 0
    assert fleet.listener.heard[-1] == ("said", Busy(KEY, WorkerKey("a", 1)))  # type: ignore[attr-defined]
    worker.message(pb.WorkerMessage(load=pb.Load(max_queued_tokens=100, queued_tokens=99)))
    assert worker.view().accepts


async def test_what_a_worker_says_of_a_key_is_an_event_of_its_machine(fleet: Fleet) -> None:
    worker, key = connect(fleet, "a"), key_message(KEY)
    outputs = pb.Outputs(request=[1, 1], choice=[0, 0], attempt=[0, 0], position=[0, 1], token=[5, 6], finish=[0, 2])
    failed = pb.Failed(key=key, type="EngineError", message="broken")
    fleet.listener.heard.clear()  # type: ignore[attr-defined]
    worker.message(pb.WorkerMessage(outputs=outputs))
    worker.message(pb.WorkerMessage(failed=failed))
    worker.message(pb.WorkerMessage(released=pb.Released(key=key)))
    worker.message(pb.WorkerMessage(committed=pb.Committed(key=key)))
    worker.message(pb.WorkerMessage(fenced=pb.Fenced(key=key)))
    worker.message(pb.WorkerMessage())  # of a later version
    heard = [said for _, said in fleet.listener.heard]  # type: ignore[attr-defined]
    assert [type(said) for said in heard] == [Output, Output, Failed, Released, Committed, Fenced]
    assert {(said.key, said.worker) for said in heard} == {(KEY, WorkerKey("a", 1))}
    assert [(said.output.position, said.output.token) for said in heard[:2]] == [(0, 5), (1, 6)]
    assert repr(heard[2].error) == repr(EngineError("broken"))


async def test_only_a_worker_that_was_met_can_be_lost(fleet: Fleet) -> None:
    fleet._workers["a"].lost("refused")
    assert ("lost", WorkerKey("a", 0)) not in fleet.listener.heard  # type: ignore[attr-defined]
    connect(fleet, "a").lost("silent")
    assert fleet.listener.heard[-2:] == [("lost", WorkerKey("a", 1)), ("room_changed", None)]  # type: ignore[attr-defined]


async def test_a_member_that_leaves_keeps_its_session_while_it_lives(
    fleet: Fleet, membership: StaticMembership
) -> None:
    worker = connect(fleet, "a")
    membership.set([])
    await asyncio.sleep(0.01)
    assert fleet.find(WorkerKey("a", 1)) is worker and set(fleet._workers) == {"a"}
    worker.lost("gone")
    await asyncio.sleep(0)
    assert not fleet._workers and worker.session.closed  # type: ignore[attr-defined]


async def test_a_draining_worker_is_said_and_takes_nothing(fleet: Fleet) -> None:
    worker = connect(fleet, "a")
    worker.message(pb.WorkerMessage(draining=pb.Draining()))
    assert ("draining", WorkerKey("a", 1)) in fleet.listener.heard  # type: ignore[attr-defined]
    assert not worker.view().accepts


async def test_a_paused_worker_takes_nothing_until_it_says_so_or_comes_back_without_a_word_of_it(fleet: Fleet) -> None:
    worker = connect(fleet, "a", max_model_len=64)
    assert not fleet.is_paused
    for ends in (pb.WorkerMessage(draining=pb.Draining(round=3, ended=True)), None):
        worker.message(pb.WorkerMessage(draining=pb.Draining(round=3, pause="wait")))
        assert fleet.listener.heard[-2:] == [("paused: wait", WorkerKey("a", 1)), ("room_changed", None)]  # type: ignore[attr-defined]
        assert worker.state == "paused" and fleet.is_paused and not fleet.snapshot["a"].accepts
        assert fleet.longest_request() is None
        if ends is not None:
            worker.message(ends)
            assert ("undrained", WorkerKey("a", 1)) in fleet.listener.heard  # type: ignore[attr-defined]
        else:
            worker.connected(pb.WorkerMessage(hello=worker.hello), resumed=True)
            assert worker.state == "paused" and not fleet.snapshot["a"].accepts  # it has not said anything yet
            fleet.listener.heard.clear()  # type: ignore[attr-defined]
            worker.message(pb.WorkerMessage(load=pb.Load(max_queued_tokens=100)))
            assert ("undrained", WorkerKey("a", 1)) in fleet.listener.heard  # type: ignore[attr-defined]
        assert worker.state == "live" and not fleet.is_paused and fleet.snapshot["a"].accepts
        assert fleet.longest_request() == 64


async def test_what_a_paused_worker_gives_up_is_preempted(fleet: Fleet) -> None:
    worker = connect(fleet, "a")
    fenced = pb.WorkerMessage(fenced=pb.Fenced(key=key_message(KEY)))
    worker.message(fenced)
    worker.message(pb.WorkerMessage(draining=pb.Draining(pause="keep")))
    worker.message(fenced)
    said = [event for kind, event in fleet.listener.heard if kind == "said"]  # type: ignore[attr-defined]
    assert [event.preempted for event in said] == [False, True]


async def test_where_all_of_the_old_weights_are_paused_those_of_new_ones_serve(fleet: Fleet) -> None:
    old, new = connect(fleet, "a", digest="old"), connect(fleet, "b", digest="new")
    assert (fleet.model_digest, set(fleet.snapshot)) == ("old", {"a"})
    old.message(pb.WorkerMessage(draining=pb.Draining(pause="wait")))
    assert (fleet.model_digest, set(fleet.snapshot)) == ("new", {"b"})
    old.hello.model_digest = "new"
    old.connected(pb.WorkerMessage(hello=old.hello), resumed=True)
    old.message(pb.WorkerMessage(load=pb.Load(max_queued_tokens=100)))
    assert set(fleet.snapshot) == {"a", "b"}
    new.message(pb.WorkerMessage(draining=pb.Draining(pause="wait")))
    assert set(fleet.snapshot) == {"a", "b"}


async def test_a_pool_that_is_paused_while_its_worker_is_away_is_paused(
    fleet: Fleet, membership: StaticMembership
) -> None:
    state = ApplicationState(number=4, decode=PoolState(pause=PauseMode.WAIT))
    membership.set([replace(member("a"), state=state), member("b")])
    await asyncio.sleep(0.01)
    assert fleet.state == state and fleet.is_paused
    membership.set([replace(member("a"), state=ApplicationState(number=3)), member("b")])
    await asyncio.sleep(0.01)
    assert fleet.state == state  # older ones are forgotten
    membership.set([replace(member("a"), state=ApplicationState(number=5, base="another model"))])
    await asyncio.sleep(0.01)
    assert fleet.state == state


async def test_the_longest_request_is_what_the_largest_worker_that_stays_holds(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.max_model_len = 512
    assert fleet.longest_request() is None
    connect(fleet, "a", max_model_len=256)
    larger = connect(fleet, "b", max_model_len=512)
    assert fleet.longest_request() == 512
    assert [view.max_model_len for view in fleet.snapshot.values()] == [256, 512]
    larger.message(pb.WorkerMessage(draining=pb.Draining()))
    assert fleet.longest_request() == 256
    [said] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "a" in said and "requests of 256 tokens, the context is 512" in said


async def test_workers_of_other_blocks_are_told_of_once_and_get_no_handovers(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    connect(fleet, "a", layout_fingerprint="x", block_tokens=16)
    for epoch in (1, 2):
        connect(fleet, "b", epoch=epoch, layout_fingerprint="y", block_tokens=32)
    assert [view.layout for view in fleet.snapshot.values()] == ["x", "y"]
    [said] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "blocks of 16 tokens" in said and "(32)" in said and "nothing is handed over" in said


async def test_workers_are_counted_by_what_this_router_can_do_with_them(fleet: Fleet) -> None:
    assert fleet.states() == {("decode", "connecting"): 2}
    fleet._workers["a"].session.failure = "UNAVAILABLE: no route"  # type: ignore[misc]
    assert fleet.states() == {("decode", "connecting"): 1, ("decode", "unreachable"): 1}
    worker = connect(fleet, "b")
    assert fleet.states() == {("decode", "live"): 1, ("decode", "unreachable"): 1}
    worker.message(pb.WorkerMessage(draining=pb.Draining()))
    assert worker.state == "draining"
    connect(fleet, "b", epoch=2, model="other")
    assert worker.state == "refused"
    fleet._workers["a"].refused("protocol_version: 1 here, 2 there")
    assert fleet.states() == {("decode", "refused"): 2}


async def test_a_watch_that_ends_is_said_and_the_router_is_unhealthy(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        async def watch(self) -> AsyncIterator[list[Member]]:
            yield []
            raise KeyError("what nobody has expected")

    metrics = RouterMetrics(CollectorRegistry())
    broken = Fleet(Broken(), model="m", router_id="r", router_epoch=7, timing=SessionTiming(), metrics=metrics)
    broken.start()
    broken.check_health()
    await asyncio.sleep(0.01)
    with pytest.raises(
        TaskError, match="the watch of the membership has stopped: KeyError: 'what nobody has expected'"
    ):
        broken.check_health()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    await broken.close()


@pytest.fixture
async def watching(monkeypatch: pytest.MonkeyPatch, membership: StaticMembership) -> AsyncIterator[Fleet]:
    """A fleet whose policy looks at caches; what it asks of workers is in `asked`."""
    asked: list[tuple[str, int]] = []

    def send(self: ScriptedSession, message: pb.RouterMessage) -> bool:
        if message.HasField("watch_cache"):
            asked.append((self.events.member.id, message.watch_cache.next))
        return True

    monkeypatch.setattr(ScriptedSession, "send", send)
    monkeypatch.setattr(fleet_module, "WorkerSession", ScriptedSession)
    metrics = RouterMetrics(CollectorRegistry())
    made = Fleet(membership, "m", "r", 7, SessionTiming(), metrics, watches_caches=True)
    made.listener = Listener()
    made.asked = asked  # type: ignore[attr-defined]
    made.start()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    yield made
    await made.close()


def caches_observed(fleet: Fleet) -> list[FleetEvent]:
    return [event for event in fleet.listener.observed if isinstance(event, WorkerGone | CacheReset | CacheChanged)]  # type: ignore[attr-defined]


def snapshot_of(number: int, hashes: bytes) -> pb.WorkerMessage:
    return pb.WorkerMessage(cache_snapshot=pb.CacheSnapshot(number=number, hashes=hashes))


def events_from(first: int, events: bytes) -> pb.WorkerMessage:
    return pb.WorkerMessage(cache_events=pb.CacheEvents(first=first, events=events))


HASH, STORED = bytes(16), b"\1" + bytes(16)


async def test_a_cache_is_watched_from_when_its_worker_is_there_and_at_a_gap_asked_again(watching: Fleet) -> None:
    a = connect(watching, "a")
    assert watching.asked == [("a", 0)]  # type: ignore[attr-defined]
    a.message(snapshot_of(4, HASH))
    a.message(events_from(5, STORED * 2))
    a.message(events_from(8, STORED))
    a.message(events_from(7, STORED * 2))
    assert caches_observed(watching) == [
        CacheReset("a", HASH),
        CacheChanged("a", STORED * 2),
        CacheChanged("a", STORED * 2),
    ]
    assert watching.asked == [("a", 0), ("a", 7)]  # type: ignore[attr-defined]


async def test_a_worker_that_went_and_came_back_is_asked_for_all_of_its_cache(watching: Fleet) -> None:
    a = connect(watching, "a")
    a.message(snapshot_of(4, HASH))
    a.session.is_connected = False  # type: ignore[misc]
    a.broken("cut")
    a.session.is_connected = True  # type: ignore[misc]
    a.connected(pb.WorkerMessage(hello=a.hello), resumed=True)
    assert watching.asked == [("a", 0), ("a", 0)]  # type: ignore[attr-defined]
    a.message(events_from(5, STORED))  # of the old watch
    a.message(snapshot_of(5, HASH * 2))
    assert caches_observed(watching) == [CacheReset("a", HASH), WorkerGone("a"), CacheReset("a", HASH * 2)]


async def test_the_cache_of_a_worker_with_other_weights_is_nobodys_matter(watching: Fleet) -> None:
    connect(watching, "a", digest="d")
    other = connect(watching, "b", digest="other")
    other.message(snapshot_of(4, HASH))
    assert caches_observed(watching) == []
    assert watching.asked == [("a", 0)]  # type: ignore[attr-defined]


async def test_a_fleet_whose_policy_looks_at_no_cache_asks_for_none(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[pb.RouterMessage] = []
    monkeypatch.setattr(ScriptedSession, "send", lambda self, message: sent.append(message) or True)
    connect(fleet, "a")
    assert not any(message.HasField("watch_cache") for message in sent)
