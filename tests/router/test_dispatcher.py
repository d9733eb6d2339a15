"""The dispatcher over a scripted fleet: what is sent to whom, and what a client gets."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from rtp_llm._native import _engine
from rtp_llm.config import RouterSettings
from rtp_llm.errors import (
    AbortedError,
    DeadlineError,
    EngineError,
    OverloadedError,
    SuspectError,
    UnavailableError,
    WorkerLostError,
)
from rtp_llm.metrics import RouterMetrics
from rtp_llm.pool_state import PauseMode
from rtp_llm.request import FinishReason, Request, TokenOutput
from rtp_llm.router.account import AnswerAccount, RequestAccount
from rtp_llm.router.dispatcher import Dispatcher
from rtp_llm.router.fleet import FleetListener
from rtp_llm.router.placement import (
    DECODE,
    PREFILL,
    FleetEvent,
    HandoverMeasured,
    Placement,
    PlacementQuery,
    Policy,
    Snapshot,
    ViewChanged,
    WorkerGone,
    WorkerView,
)
from rtp_llm.router.placement.least_loaded import LeastLoaded
from rtp_llm.router.placement.round_robin import RoundRobin
from rtp_llm.router.request_machine import Busy, Committed, Failed, Output, Started
from rtp_llm.router.terms import NO_TERMS, Terms
from rtp_llm.sampling_params import SamplingParams
from rtp_llm.wire.convert import key_of
from rtp_llm.wire.key import RequestKey, WorkerKey
from rtp_llm.wire.v1 import router_pb2 as pb

EPOCH = 7
P, D = WorkerKey("p", 1), WorkerKey("d", 2)


class ScriptedWorker:
    """Remembers what the dispatcher tells the fleet's record of a worker."""

    def __init__(self) -> None:
        self.peer_address = "127.0.0.1:1"
        self.placed: set[RequestKey] = set()
        self.changed: Callable[[], None] = lambda: None

    def note_submitted(self, key: RequestKey, prompt_tokens: int, *, runs: bool) -> None:
        self.placed.add(key)
        self.changed()

    def note_receives(self, key: RequestKey, prompt_tokens: int) -> None:
        self.placed.add(key)
        self.changed()

    def forget(self, key: RequestKey) -> None:
        self.placed.discard(key)

    def note_over(self, key: RequestKey) -> None:
        self.placed.discard(key)
        self.changed()


class ScriptedFleet:
    """Workers that take everything and say what the test makes them say."""

    router_epoch = EPOCH
    num_routers = 1
    model_digest: str | None = None
    is_paused = False

    def __init__(self) -> None:
        self._listener: FleetListener | None = None
        self.there = [
            WorkerView(id="p", epoch=1, pool=PREFILL, max_queued_tokens=100),
            WorkerView(id="d", epoch=2, pool=DECODE, max_queued_tokens=100),
        ]
        self.sent: list[tuple[str, pb.RouterMessage]] = []
        self.records: dict[WorkerKey, ScriptedWorker] = {}
        self.acknowledged: list[WorkerKey] = []
        self.told: list[bytes] = []  # other routers, of prompts that ended workers

    @property
    def listener(self) -> FleetListener:
        assert self._listener is not None
        return self._listener

    @listener.setter
    def listener(self, listener: FleetListener) -> None:
        self._listener = listener
        self.there = self.there

    @property
    def there(self) -> list[WorkerView]:
        return list(self.snapshot.values())

    @there.setter
    def there(self, views: Sequence[WorkerView]) -> None:
        gone = self.snapshot.keys() - {view.id for view in views} if self._listener else set()
        self.snapshot = {view.id: view for view in views}
        for event in (*(WorkerGone(id) for id in gone), *(ViewChanged(view) for view in views)):
            if self._listener is not None:
                self._listener.observe(event)

    def tell_routers(self, digest: bytes) -> None:
        self.told.append(digest)

    def longest_request(self) -> int | None:
        limits = [each.max_model_len for each in self.there]
        return max(limits) if limits and all(limits) else None

    def find(self, key: WorkerKey) -> ScriptedWorker:
        return self.records.setdefault(key, ScriptedWorker())

    def acknowledge_draining(self, key: WorkerKey) -> None:
        self.acknowledged.append(key)

    def send(self, key: WorkerKey, message: pb.RouterMessage) -> bool:
        copy = pb.RouterMessage()
        copy.CopyFrom(message)
        self.sent.append((key.id, copy))
        return True

    def kinds(self) -> list[tuple[str, str | None]]:
        return [(worker, message.WhichOneof("message")) for worker, message in self.sent]

    def key(self) -> RequestKey:
        """Of the last Submit."""
        return [key_of(m.submit.key) for _, m in self.sent if m.WhichOneof("message") == "submit"][-1]

    def output(self, worker: WorkerKey, key: RequestKey, position: int, finish: int = 0) -> None:
        failed = finish == FinishReason.FAILED
        token = TokenOutput(position, -1 if failed else 100 + position, finish_reason=FinishReason(finish))
        self.listener.said(Output(key, worker, token))


@pytest.fixture
def fleet() -> ScriptedFleet:
    return ScriptedFleet()


def dispatcher(fleet: ScriptedFleet, policy: Policy | None = None, **settings: float) -> Dispatcher:
    metrics = RouterMetrics(CollectorRegistry())
    return Dispatcher(fleet, policy or LeastLoaded(), RouterSettings(**settings), metrics)  # type: ignore[arg-type]


def request(**sampling: object) -> Request:
    params = SamplingParams(**{"seed": 1, "max_tokens": 4, **sampling})  # type: ignore[arg-type]
    return Request(request_id="r", prompt=[1, 2, 3], sampling=params)


async def collect(router: Dispatcher, asked: Request, terms: Terms = NO_TERMS) -> list[int]:
    return [o.token async for batch in router.generate(asked, router.next_request(), terms=terms) for o in batch]


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_an_answer_whose_next_token_could_not_be_sampled_ends_with_an_error_and_others_go_on(
    fleet: ScriptedFleet,
) -> None:
    router = dispatcher(fleet)
    asked = router.next_request()
    good = asyncio.create_task(collect(router, request()))
    await turn()
    good_key = fleet.key()
    batches = router.generate(request(), asked)
    told = asyncio.ensure_future(anext(batches))
    await turn()
    fleet.output(P, fleet.key(), 0)
    fleet.output(D, fleet.key(), 1, finish=FinishReason.FAILED)
    assert [o.token for o in await told] == [100]  # what came before it is given
    with pytest.raises(EngineError, match="position 1"):
        await anext(batches)
    for position in range(4):
        fleet.output(D, good_key, position, finish=2 if position == 3 else 0)
    assert await good == [100, 101, 102, 103]
    assert router.num_live == 0


async def test_tokens_of_both_workers_become_one_stream_without_repeat(fleet: ScriptedFleet) -> None:
    router = dispatcher(fleet)
    task = asyncio.create_task(collect(router, request()))
    await turn()
    worker, submit = fleet.sent[0]
    assert worker == "p" and submit.submit.receiver.id == "d" and not submit.submit.alone
    fleet.output(P, fleet.key(), 0)
    for position in range(4):  # R streams from p0 again
        fleet.output(D, fleet.key(), position, finish=2 if position == 3 else 0)
    assert await task == [100, 101, 102, 103]
    assert router.num_live == 0 and fleet.kinds() == [("p", "submit")]


class PairPolicy:
    """Hands over from p to d; remembers the handovers that it is told of."""

    def __init__(self, tokens_sent: int | None) -> None:
        self.tokens_sent = tokens_sent
        self.measured: list[HandoverMeasured] = []

    def observe(self, events: Sequence[FleetEvent]) -> None:
        self.measured += [event for event in events if isinstance(event, HandoverMeasured)]

    def choose(self, snapshot: Snapshot, query: PlacementQuery) -> Placement:
        return Placement(sender=snapshot["p"], receiver=snapshot["d"], tokens_sent=self.tokens_sent)


@pytest.mark.parametrize("tokens_sent", [2, None])
async def test_a_policy_that_knows_what_is_sent_is_told_how_long_it_took(
    fleet: ScriptedFleet, tokens_sent: int | None
) -> None:
    policy = PairPolicy(tokens_sent)
    router = dispatcher(fleet, policy)
    task = asyncio.create_task(collect(router, request()))
    await turn()
    fleet.output(P, fleet.key(), 0)
    for _ in range(2):  # R repeats it after an Attach
        fleet.listener.said(Committed(fleet.key(), D))
    for position in range(4):
        fleet.output(D, fleet.key(), position, finish=2 if position == 3 else 0)
    await task
    told = [(each.sender, each.receiver, each.tokens_sent) for each in policy.measured]
    assert told == ([] if tokens_sent is None else [("p", "d", 2)])
    assert all(0 <= each.seconds < 10 for each in policy.measured)


async def test_a_handover_after_a_retry_is_not_measured_from_the_first_attempts_token(fleet: ScriptedFleet) -> None:
    policy = PairPolicy(2)
    router = dispatcher(fleet, policy)
    task = asyncio.create_task(collect(router, request()))
    await turn()
    fleet.output(P, fleet.key(), 0)
    fleet.listener.lost(D)
    await turn()
    fleet.output(P, fleet.key(), 1)
    fleet.listener.said(Committed(fleet.key(), D))
    for position in range(1, 4):
        fleet.output(D, fleet.key(), position, finish=2 if position == 3 else 0)
    assert await task == [100, 101, 102, 103]
    assert policy.measured == []


async def test_an_attempt_that_s_was_too_busy_for_counts_at_r_no_more(fleet: ScriptedFleet) -> None:
    router = dispatcher(fleet)
    task = asyncio.create_task(collect(router, request()))
    await turn()
    first = fleet.key()
    assert fleet.find(P).placed == fleet.find(D).placed == {first}
    busy(fleet, first)
    await turn()
    assert fleet.key() != first
    assert fleet.find(P).placed == fleet.find(D).placed == {fleet.key()}
    task.cancel()


async def test_a_handover_waits_in_the_router_for_a_slot_at_r(fleet: ScriptedFleet) -> None:
    prefill, decode = fleet.there
    placed = fleet.find(D).placed
    fleet.find(D).changed = lambda: setattr(fleet, "there", [prefill, replace(decode, free_slots=1 - len(placed))])
    router = dispatcher(fleet)
    tasks = [asyncio.create_task(collect(router, request())) for _ in range(2)]
    await turn()
    first = fleet.key()
    assert fleet.kinds() == [("p", "submit")]
    for position in range(4):
        fleet.output(D, first, position, finish=2 if position == 3 else 0)
    assert await tasks[0] == [100, 101, 102, 103]
    await turn()  # no Load has come
    assert fleet.kinds() == [("p", "submit")] * 2 and fleet.key() != first
    tasks[1].cancel()


async def test_a_policy_is_told_how_long_the_request_has_waited(fleet: ScriptedFleet) -> None:
    asked: list[PlacementQuery] = []

    class Full(LeastLoaded):
        def choose(self, snapshot: Snapshot, query: PlacementQuery) -> None:
            asked.append(query)

    task = asyncio.create_task(collect(dispatcher(fleet, Full()), request()))
    await turn()
    fleet.listener.room_changed()
    task.cancel()
    assert len(asked) >= 2 and asked[-1].now >= asked[0].now > 0
    assert asked[-1].waited_s - asked[0].waited_s == pytest.approx(asked[-1].now - asked[0].now)


async def test_a_policy_gets_the_hashes_that_engines_of_this_model_have_for_the_prompt_and_the_tokens_so_far(
    fleet: ScriptedFleet,
) -> None:
    class Hashing(LeastLoaded):
        def __init__(self) -> None:
            super().__init__()
            self.hashes: list[bytes | None] = []

        def choose(self, snapshot: Snapshot, query: PlacementQuery) -> Placement | None:
            self.hashes.append(None if query.block_hashes is None else query.block_hashes(2))
            return super().choose(snapshot, query)

    policy = Hashing()
    router = dispatcher(fleet, policy)
    asked = replace(request(), prompt=[1, 2, 3, 4, 5], cache_salt="s")
    tasks = [asyncio.create_task(collect(router, asked))]
    await turn()
    fleet.model_digest = "digest"
    tasks.append(asyncio.create_task(collect(router, asked)))
    await turn()
    fleet.output(P, fleet.key(), 0)
    fleet.listener.lost(D)
    await turn()

    def hashes(*tokens: int) -> bytes:
        text = _engine.block_hash_salt("digest", "s") + b"".join(token.to_bytes(4, "little") for token in tokens)
        salt = len(text) - 4 * len(tokens)
        return b"".join(hashlib.sha256(text[: salt + 8 * (n + 1)]).digest()[:16] for n in range(len(tokens) // 2))

    assert policy.hashes[:2] == [None, hashes(1, 2, 3, 4)]
    assert set(policy.hashes[2:]) == {hashes(1, 2, 3, 4), hashes(1, 2, 3, 4, 5, 100)}
    for task in tasks:
        task.cancel()


async def test_a_policy_is_told_the_session_and_two_tenants_are_two(fleet: ScriptedFleet) -> None:
    asked: list[str] = []

    class Asked(LeastLoaded):
        def choose(self, snapshot: Snapshot, query: PlacementQuery) -> Placement | None:
            asked.append(query.session)
            return super().choose(snapshot, query)

    router = dispatcher(fleet, Asked())
    each = (
        Terms(tenant="a", session="s"),
        Terms(tenant="b", session="s"),
        Terms(tenant="a"),
        Terms(tenant="a", session="s"),
    )
    tasks = []
    for terms in each:
        tasks.append(asyncio.create_task(collect(router, request(), terms)))
        await turn()
    assert asked[0] == asked[3] != asked[1] and asked[0] and asked[1] and asked[2] == ""
    for task in tasks:
        task.cancel()


async def test_an_answer_of_one_token_runs_alone(fleet: ScriptedFleet) -> None:
    router = dispatcher(fleet)
    task = asyncio.create_task(collect(router, request(max_tokens=1)))
    await turn()
    assert fleet.sent[0][1].submit.alone
    fleet.output(P, fleet.key(), 0, finish=2)
    assert await task == [100]


async def test_a_lost_decode_worker_is_replaced_and_the_stream_goes_on(fleet: ScriptedFleet) -> None:
    router = dispatcher(fleet)
    task = asyncio.create_task(collect(router, request()))
    await turn()
    fleet.output(P, fleet.key(), 0)
    fleet.output(D, fleet.key(), 1)
    fleet.there = [fleet.there[0], WorkerView(id="d2", epoch=3, pool=DECODE, max_queued_tokens=100)]
    fleet.listener.lost(D)
    await turn()
    retry = fleet.sent[-1][1].submit
    assert list(retry.output) == [100, 101] and retry.key.attempt == 1 and retry.receiver.id == "d2"
    assert ("p", "cancel") in fleet.kinds()
    fleet.output(P, fleet.key(), 2)
    fleet.output(WorkerKey("d2", 3), fleet.key(), 3, finish=2)
    assert await task == [100, 101, 102, 103]


async def test_a_third_loss_ends_the_answer(fleet: ScriptedFleet) -> None:
    router = dispatcher(fleet)
    task = asyncio.create_task(collect(router, request()))
    for _ in range(3):
        await turn()
        for worker in (P, D):  # wherever it runs
            fleet.listener.lost(worker)
    with pytest.raises(WorkerLostError, match="3 workers were lost"):
        await task


async def test_what_ended_two_workers_is_an_error_and_refused_from_then_on_by_all_routers(fleet: ScriptedFleet) -> None:
    router = dispatcher(fleet)
    task = asyncio.create_task(collect(router, request()))
    await turn()
    fleet.listener.lost(D)
    await turn()
    [*_, (worker, message)] = [each for each in fleet.sent if each[1].HasField("submit")]
    assert message.submit.solo and message.submit.alone
    where = {"p": P, "d": D}[worker]
    fleet.listener.said(Started(fleet.key(), where))
    fleet.listener.lost(where)
    with pytest.raises(SuspectError, match="2 workers were lost"):
        await task
    with pytest.raises(SuspectError, match="has ended workers and is refused"):
        await collect(router, request())
    assert router.num_live == 0
    other = dispatcher(ScriptedFleet())
    [digest] = fleet.told
    other.ended_workers(digest)
    with pytest.raises(SuspectError):
        await collect(other, request())


@pytest.mark.parametrize(("rate", "tried"), [(0.001, 2), (1000.0, 4)])
async def test_retries_beyond_the_budget_wait_for_their_turn(fleet: ScriptedFleet, rate: float, tried: int) -> None:
    router = dispatcher(fleet, retry_burst=2, retry_rate=rate)
    tasks = [asyncio.create_task(collect(router, request())) for _ in range(4)]
    await turn()
    fleet.sent.clear()
    fleet.listener.lost(D)
    await asyncio.sleep(0.02)
    await turn()
    assert [kind for _, kind in fleet.kinds()].count("submit") == tried
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert router.num_live == 0 and router.num_waiting == 0


async def test_an_answer_that_ends_before_its_retry_leaves_nothing_behind(fleet: ScriptedFleet) -> None:
    router = dispatcher(fleet, retry_burst=1, retry_rate=50)
    tasks = [asyncio.create_task(collect(router, request())) for _ in range(2)]
    await turn()
    fleet.listener.lost(D)
    await turn()
    fleet.sent.clear()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0.05)  # its turn comes after 0.02
    assert "submit" not in [kind for _, kind in fleet.kinds()] and router.num_waiting == 0


async def test_closing_the_stream_cancels_on_both_workers(fleet: ScriptedFleet) -> None:
    router = dispatcher(fleet)
    stream = router.generate(request(), router.next_request())
    waiting = asyncio.ensure_future(anext(stream))
    await turn()
    fleet.output(P, fleet.key(), 0)
    await waiting
    await stream.aclose()
    assert fleet.kinds()[1:] == [("p", "cancel"), ("d", "cancel")] and router.num_live == 0


def busy(fleet: ScriptedFleet, key: RequestKey) -> None:
    fleet.listener.said(Busy(key, P))


async def test_what_a_busy_worker_refused_is_placed_again_when_there_is_room(fleet: ScriptedFleet) -> None:
    router = dispatcher(fleet)
    task = asyncio.create_task(collect(router, request()))
    await turn()
    key = fleet.key()
    assert fleet.find(P).placed == {key} and fleet.find(D).placed == {key}
    fleet.there = []
    busy(fleet, key)
    await turn()
    assert fleet.find(P).placed == set() and len(fleet.sent) == 1
    fleet.there = ScriptedFleet().there
    fleet.listener.room_changed()
    assert fleet.sent[-1][1].submit.key.attempt == 1
    task.cancel()


async def test_those_who_wait_are_served_in_order_of_arrival_after_busy_too(fleet: ScriptedFleet) -> None:
    router = dispatcher(fleet)
    tasks = [asyncio.create_task(collect(router, request())) for _ in range(3)]
    await turn()
    keys = [key_of(message.submit.key) for _, message in fleet.sent]
    fleet.there = []
    for key in keys:
        busy(fleet, key)
    fleet.there = ScriptedFleet().there
    fleet.listener.room_changed()
    again = [key_of(message.submit.key).request for _, message in fleet.sent[3:]]
    assert again == [key.request for key in keys]
    for task in tasks:
        task.cancel()


async def test_an_answer_that_only_hears_busy_ends_at_its_queue_deadline(fleet: ScriptedFleet) -> None:
    router = dispatcher(fleet, queue_timeout_s=0.05)
    task = asyncio.create_task(collect(router, request()))
    for _ in range(100):
        await asyncio.sleep(0.002)
        if task.done():
            break
        if fleet.sent:
            busy(fleet, fleet.key())
    with pytest.raises(UnavailableError):
        await task


async def test_what_is_cancelled_or_refused_counts_no_more_against_its_worker(fleet: ScriptedFleet) -> None:
    router = dispatcher(fleet)
    stream = router.generate(request(), router.next_request())
    waiting = asyncio.ensure_future(anext(stream))
    await turn()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await stream.aclose()
    assert fleet.find(P).placed == set() and fleet.find(D).placed == set()


async def test_an_answer_without_a_receiver_takes_no_receivers_turn(fleet: ScriptedFleet) -> None:
    fleet.there = [*fleet.there, WorkerView(id="e", epoch=3, pool=DECODE, max_queued_tokens=100)]
    router = dispatcher(fleet, RoundRobin())
    tasks = [asyncio.create_task(collect(router, request(max_tokens=n))) for n in (4, 1, 4, 1)]
    await turn()
    submits = [m.submit for _, m in fleet.sent if m.WhichOneof("message") == "submit"]
    assert [submit.receiver.id for submit in submits] == ["d", "", "e", ""]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_draining_worker_is_acknowledged_when_no_answer_names_it(fleet: ScriptedFleet) -> None:
    router = dispatcher(fleet)
    task = asyncio.create_task(collect(router, request(max_tokens=2)))
    await turn()
    fleet.listener.draining(D, None)
    assert fleet.acknowledged == []
    fleet.output(P, fleet.key(), 0)
    fleet.output(D, fleet.key(), 1, finish=2)
    await task
    assert fleet.acknowledged == [D]


@pytest.mark.parametrize("by_output", [False, True])
async def test_a_sender_that_drains_is_not_kept_by_what_its_receiver_has_committed(
    fleet: ScriptedFleet, by_output: bool
) -> None:
    router = dispatcher(fleet)
    task = asyncio.create_task(collect(router, request(max_tokens=3)))
    await turn()
    fleet.output(P, fleet.key(), 0)
    fleet.listener.draining(P, None)
    assert fleet.acknowledged == []  # R may not have the KV
    if by_output:
        fleet.output(D, fleet.key(), 1)
    else:
        fleet.listener.said(Committed(fleet.key(), D))
    assert fleet.acknowledged == [P]
    fleet.listener.draining(P, PauseMode.ABORT)
    assert fleet.acknowledged == [P, P] and not task.done()
    task.cancel()


async def test_a_pause_that_aborts_ends_what_names_the_worker_and_nothing_else(fleet: ScriptedFleet) -> None:
    router = dispatcher(fleet)
    decoding = asyncio.create_task(collect(router, request()))
    await turn()
    fleet.output(P, fleet.key(), 0)
    others = replace(fleet.there[1], id="e", epoch=3)
    fleet.there = [fleet.there[0], others]
    elsewhere = asyncio.create_task(collect(router, request()))
    await turn()
    fleet.listener.draining(D, PauseMode.ABORT)
    with pytest.raises(AbortedError):
        await decoding
    assert ("d", "cancel") in fleet.kinds() and fleet.acknowledged == [D]
    assert not elsewhere.done() and router.num_live == 1
    elsewhere.cancel()


async def test_a_pause_that_is_over_is_not_acknowledged_any_more(fleet: ScriptedFleet) -> None:
    router = dispatcher(fleet)
    task = asyncio.create_task(collect(router, request(max_tokens=2)))
    await turn()
    fleet.listener.draining(D, PauseMode.KEEP)
    fleet.listener.undrained(D)
    fleet.output(P, fleet.key(), 0)
    fleet.output(D, fleet.key(), 1, finish=2)
    await task
    assert fleet.acknowledged == []


async def test_what_waits_in_a_pause_waits_as_long_as_it_lasts_and_then_anew(fleet: ScriptedFleet) -> None:
    fleet.there, there = [], fleet.there
    fleet.is_paused = True
    router = dispatcher(fleet, queue_timeout_s=0.01)
    waiting = asyncio.create_task(collect(router, request(max_tokens=1)))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    fleet.is_paused, fleet.there = False, there
    fleet.listener.room_changed()
    await turn()
    fleet.output(P, fleet.key(), 0, finish=2)
    assert await waiting == [100]
    fleet.there = []
    with pytest.raises(UnavailableError, match="0 are connected"):
        await collect(router, request())


async def test_a_refused_request_fails_with_the_workers_error(fleet: ScriptedFleet) -> None:
    router = dispatcher(fleet)
    task = asyncio.create_task(collect(router, request()))
    await turn()
    fleet.listener.said(Failed(fleet.key(), P, EngineError("broken")))
    with pytest.raises(EngineError, match="broken"):
        await task


async def test_a_client_that_does_not_read_is_buffered_up_to_a_limit_and_then_cancelled(fleet: ScriptedFleet) -> None:
    router = dispatcher(fleet, client_buffer_tokens=3)
    stream = router.generate(request(max_tokens=100), router.next_request())
    first = asyncio.ensure_future(anext(stream))
    await turn()
    fleet.output(P, fleet.key(), 0)
    assert [output.position for output in await first] == [0]
    for position in (1, 2, 3):
        fleet.output(D, fleet.key(), position)
    await turn()
    assert ("d", "cancel") not in fleet.kinds()
    fleet.output(D, fleet.key(), 4)
    await turn()
    assert {("p", "cancel"), ("d", "cancel")} <= set(fleet.kinds()) and router.num_live == 0
    assert [output.position for output in await anext(stream)] == [1, 2, 3, 4]
    with pytest.raises(UnavailableError, match="reads too slowly: 4 tokens"):
        await anext(stream)


async def test_nobody_there_is_said_after_the_queue_timeout(fleet: ScriptedFleet) -> None:
    fleet.there = []
    with pytest.raises(UnavailableError, match="0 are connected"):
        await collect(dispatcher(fleet, queue_timeout_s=0.01), request())


async def test_a_deadline_cancels_and_is_said(fleet: ScriptedFleet) -> None:
    with pytest.raises(DeadlineError):
        await collect(dispatcher(fleet, request_timeout_s=0.01), request())
    assert ("p", "cancel") in fleet.kinds()


async def test_a_request_ends_at_its_own_deadline_which_is_at_most_the_setting(fleet: ScriptedFleet) -> None:
    for terms, settings, text in (
        (Terms(timeout_s=0.01), {}, "not whole after 0.01 s"),
        (Terms(timeout_s=99), {"request_timeout_s": 0.02}, "not whole after 0.02 s"),
        (Terms(ttft_timeout_s=0.01), {}, "no token after 0.01 s"),
        (Terms(ttft_timeout_s=99), {"ttft_timeout_s": 0.02}, "no token after 0.02 s"),
    ):
        router = dispatcher(fleet, **settings)
        with pytest.raises(DeadlineError, match=text):
            await anext(router.generate(request(), router.next_request(), terms=terms))
        assert fleet.kinds()[-2:] == [("p", "cancel"), ("d", "cancel")] and router.num_live == 0


async def test_deadlines_count_from_the_requests_arrival(fleet: ScriptedFleet) -> None:
    router = dispatcher(fleet)
    account = AnswerAccount(time.monotonic() - 300)
    answer = router.generate(request(), router.next_request(), account, Terms(timeout_s=300))
    with pytest.raises(DeadlineError):
        await asyncio.wait_for(anext(answer), 10)


async def test_the_deadline_of_a_first_token_is_kept_by_the_first_token(fleet: ScriptedFleet) -> None:
    """And by a later choice at all: it has waited for the first one's."""
    router = dispatcher(fleet)
    terms = Terms(ttft_timeout_s=0.05)
    later = replace(request(), choice=1)
    numbers = router.next_request(), router.next_request()
    streams = [
        router.generate(each, number, terms=terms) for each, number in zip((request(), later), numbers, strict=True)
    ]
    waiting = [asyncio.ensure_future(anext(each)) for each in streams]
    await turn()
    for _, submitted in list(fleet.sent):
        if submitted.submit.key.choice == 0:
            fleet.output(P, key_of(submitted.submit.key), 0)
    await waiting[0]
    await asyncio.sleep(0.06)
    assert not waiting[1].done() and router.num_live == 2
    waiting[1].cancel()
    await streams[0].aclose()


async def test_prompts_that_wait_are_counted_until_they_are_placed(fleet: ScriptedFleet) -> None:
    there, fleet.there = fleet.there, []
    router = dispatcher(fleet)
    asked = [request(), request(), replace(request(), choice=1)]
    tasks = [asyncio.create_task(collect(router, each)) for each in asked]
    await turn()
    assert router.tokens_ahead(NO_TERMS) == 3 + 3 + 1  # a later choice finds its prompt in the cache
    tasks[0].cancel()
    await turn()
    assert router.tokens_ahead(NO_TERMS) == 3 + 1
    fleet.there = there
    fleet.listener.room_changed()
    assert router.tokens_ahead(NO_TERMS) == 0
    for task in tasks:
        task.cancel()


def alone_at_a_time(fleet: ScriptedFleet) -> None:
    """One request runs, the others wait."""
    [prefill, _] = fleet.there
    record = fleet.find(P)
    record.changed = lambda: setattr(fleet, "there", [replace(prefill, max_queued_tokens=1 - len(record.placed))])
    record.changed()


async def test_a_tenant_that_floods_does_not_hold_up_another(fleet: ScriptedFleet) -> None:
    alone_at_a_time(fleet)
    router = dispatcher(fleet)
    tenants = ["flood"] * 5 + ["little"]
    streams = [
        asyncio.create_task(anext(router.generate(request(), router.next_request(), terms=Terms(tenant=tenant))))
        for tenant in tenants
    ]
    await turn()
    placed = []
    for _ in tenants:
        placed.append(tenants[fleet.key().request - 1])
        for position in range(4):
            fleet.output(P, fleet.key(), position, finish=2 if position == 3 else 0)
        await turn()
    assert placed == ["flood", "little", "flood", "flood", "flood", "flood"]
    await asyncio.gather(*streams)


async def test_a_tenant_pays_for_what_it_is_answered(fleet: ScriptedFleet) -> None:
    """Twice a prompt's token each; else both would have their turns by turns."""
    alone_at_a_time(fleet)
    router = dispatcher(fleet, tenant_weights={"long": 2.0})
    tenants = ["long"] * 6 + ["short"] * 6
    streams = [asyncio.create_task(collect(router, request(), Terms(tenant=tenant))) for tenant in tenants]
    await turn()
    placed = []
    for _ in range(6):
        placed.append(tenants[fleet.key().request - 1])
        length = 18 if placed[-1] == "long" else 3
        for position in range(length):
            fleet.output(P, fleet.key(), position, finish=2 if position == length - 1 else 0)
        await turn()
    assert placed == ["long", "short", "short", "short", "long", "short"]  # (3 + 36) / 2 against 3 + 6
    for stream in streams:
        stream.cancel()


async def test_what_a_lost_worker_repeats_is_not_charged_again(fleet: ScriptedFleet) -> None:
    charged: list[float] = []
    router = dispatcher(fleet)
    router._waiting.charge = lambda tenant, tokens: charged.append(tokens)  # type: ignore[method-assign]
    task = asyncio.create_task(collect(router, request()))
    await turn()
    busy(fleet, fleet.key())
    await turn()
    fleet.listener.lost(D)
    await turn()
    assert len(fleet.sent) >= 3 and charged == [3]
    for position in range(2):
        fleet.output(P, fleet.key(), position)
    assert charged == [3, 2.0, 2.0]
    task.cancel()


async def test_the_least_priority_goes_first_and_workers_are_told_it_at_each_attempt(fleet: ScriptedFleet) -> None:
    there, fleet.there = fleet.there, []
    router = dispatcher(fleet)
    tasks = [asyncio.create_task(collect(router, replace(request(), priority=each))) for each in (0, 5, -5)]
    await turn()
    assert [router.tokens_ahead(Terms(priority=each)) for each in (-6, -5, 0, 5)] == [0, 3, 6, 9]
    fleet.there = there
    fleet.listener.room_changed()
    assert [message.submit.request.priority for _, message in fleet.sent] == [-5, 0, 5]
    fleet.listener.lost(D)
    await turn()
    retries = [message.submit for _, message in fleet.sent if message.submit.key.attempt == 1]
    assert [retry.request.priority for retry in retries] == [-5, 0, 5]
    for task in tasks:
        task.cancel()


async def test_who_waits_is_shown_by_tenant(fleet: ScriptedFleet) -> None:
    fleet.there = []
    router = dispatcher(fleet)
    tasks = [asyncio.create_task(collect(router, request(), Terms(tenant=tenant))) for tenant in "aab"]
    await turn()

    def shown() -> dict[str, float]:
        return {tenant: router._metrics.tenant_requests_waiting.labels(tenant)._value.get() for tenant in "ab"}

    assert shown() == {"a": 2, "b": 1}
    for task in tasks[1:]:
        task.cancel()
    await turn()
    assert shown() == {"a": 1, "b": 0}
    tasks[0].cancel()


async def test_a_policy_that_fails_loses_nobody_that_waits(fleet: ScriptedFleet) -> None:
    class Fails(LeastLoaded):
        def choose(self, snapshot: Snapshot, query: PlacementQuery) -> None:
            raise ZeroDivisionError

    fleet.there = [replace(fleet.there[0], max_model_len=10)]
    router = dispatcher(fleet, Fails())
    tasks = [asyncio.create_task(collect(router, request(max_tokens=length))) for length in (50, 5)]
    await asyncio.sleep(0)
    with pytest.raises(ZeroDivisionError):
        fleet.listener.room_changed()
    assert router.num_waiting == 2
    for task in tasks:
        task.cancel()


async def test_more_waiting_than_the_limit_is_refused(fleet: ScriptedFleet) -> None:
    fleet.there = []
    router = dispatcher(fleet, max_waiting=1)
    first = asyncio.create_task(collect(router, request()))
    await turn()
    with pytest.raises(OverloadedError, match="the limit is 1"):
        await collect(router, request())
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert router.num_live == 0


async def test_attach_lists_live_keys_with_their_role(fleet: ScriptedFleet) -> None:
    router = dispatcher(fleet)
    task = asyncio.create_task(collect(router, request()))
    await turn()
    fleet.output(P, fleet.key(), 0)
    fleet.listener.resumed(D)
    (entry,) = fleet.sent[-1][1].attach.entries
    assert (entry.next_position, entry.role) == (1, pb.ATTACH_RECEIVER)
    task.cancel()


async def test_a_key_that_nobody_knows_is_cancelled_when_it_speaks(fleet: ScriptedFleet) -> None:
    dispatcher(fleet)
    fleet.output(D, RequestKey(EPOCH, 99, 0, 0), 5)
    assert fleet.kinds() == [("d", "cancel")]


async def test_what_only_an_absent_worker_could_hold_waits_for_it_and_holds_up_nobody(fleet: ScriptedFleet) -> None:
    large = replace(fleet.there[1], max_model_len=100)
    fleet.there = [replace(fleet.there[0], max_model_len=10)]
    router = dispatcher(fleet)
    long = asyncio.create_task(collect(router, request(max_tokens=50)))
    await turn()
    short = asyncio.create_task(collect(router, request(max_tokens=1)))
    await turn()
    assert [m.submit.request.sampling.max_tokens for _, m in fleet.sent] == [1]
    fleet.there = [*fleet.there, large]
    fleet.listener.room_changed()
    await turn()
    assert [(w, m.submit.request.sampling.max_tokens) for w, m in fleet.sent] == [("p", 1), ("p", 50)]
    assert fleet.sent[1][1].submit.receiver.id == "d"  # which holds all of it; p holds the prompt
    for task in (long, short):
        task.cancel()


async def test_what_nobody_can_hold_is_told_so_with_both_numbers(fleet: ScriptedFleet) -> None:
    fleet.there = [replace(each, max_model_len=10) for each in fleet.there]
    with pytest.raises(UnavailableError, match="prompt and answer have 53 tokens, the largest of them holds 10"):
        await collect(dispatcher(fleet, queue_timeout_s=0.01), request(max_tokens=50))


async def test_an_account_says_who_worked_on_an_answer_and_phases_that_add_up_to_its_first_token(
    fleet: ScriptedFleet,
) -> None:
    router = dispatcher(fleet)
    account = AnswerAccount(time.monotonic() - 30)
    task = asyncio.create_task(anext(router.generate(request(max_tokens=2), router.next_request(), account)))
    await turn()
    first = fleet.key()
    fleet.listener.said(Busy(first, P))
    await turn()
    fleet.output(P, fleet.key(), 0)
    await turn()
    seen = time.monotonic()
    fleet.output(D, fleet.key(), 1, finish=2)
    await task
    assert account.workers == [[P.id, D.id]] * 2 and account.key == str(fleet.key()) != str(first)
    assert (account.prompt_tokens, account.tokens) == (3, 2)
    phases = account.phases()
    to_first = ("prepare", "queue", "worker_queue", "prefill", "first_token")
    assert tuple(phases) == (*to_first, "decode") and phases["prepare"] >= 30_000
    assert account.first_token is not None and account.first_token <= seen
    assert abs(sum(phases[name] for name in to_first) - (account.first_token - account.arrived) * 1e3) < 0.01


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ((1.0, 2.0), (1.0, 2.0, 1.0)),
        ((0.0, 0.0), (0.0, 0.0, 4.0)),  # it didn't say
        ((3.0, 2.0), (3.0, 1.0, 0.0)),  # more than there was
        ((9.0, 2.0), (4.0, 0.0, 0.0)),
    ],
)
def test_what_a_worker_measured_is_part_of_the_time_away(
    measured: tuple[float, float], expected: tuple[float, float, float]
) -> None:
    account = AnswerAccount(10.0, asked=11.0, placed=13.0, first_token=17.0, at_worker=measured)
    found = account.to_first_token()
    assert (found["prepare"], found["queue"]) == (1.0, 2.0)
    assert (found["worker_queue"], found["prefill"], found["first_token"]) == expected


async def test_a_prompt_counts_once_and_its_times_run_from_the_requests_arrival(
    fleet: ScriptedFleet,
) -> None:
    """Three answers of one prompt; the HTTP request came in 30 s ago."""
    account = RequestAccount("", time.monotonic() - 30)
    registry = CollectorRegistry()
    router = Dispatcher(fleet, LeastLoaded(), RouterSettings(), RouterMetrics(registry))  # type: ignore[arg-type]

    def total(name: str, **labels: str) -> float:
        return registry.get_sample_value(f"rtp_llm_{name}", labels) or 0

    number = router.next_request()
    asked = [replace(request(max_tokens=2), choice=choice) for choice in range(3)]
    tasks = [asyncio.create_task(anext(router.generate(each, number, account.answer()))) for each in asked]
    await turn()
    assert total("prompt_tokens_total") == 3
    fleet.output(P, fleet.key(), 0)
    fleet.output(D, fleet.key(), 1, finish=2)
    await turn()
    assert 30 <= total("time_to_first_token_seconds_sum") < 60
    assert 30 <= total("phase_seconds_sum", phase="prepare") < 60
    to_first = ("prepare", "queue", "worker_queue", "prefill", "first_token")
    for phase in (*to_first, "decode"):
        assert total("phase_seconds_count", phase=phase) == 1
    for phase in (*to_first[1:], "decode"):
        assert total("phase_seconds_sum", phase=phase) < 30
    phases = sum(total("phase_seconds_sum", phase=phase) for phase in to_first)
    assert phases == pytest.approx(total("time_to_first_token_seconds_sum"))
    for task in tasks:
        task.cancel()


async def test_what_only_newer_workers_know_waits_for_one_and_holds_up_nobody(fleet: ScriptedFleet) -> None:
    newer = [replace(view, id=f"{view.id}2", epoch=9, protocol=2) for view in fleet.there]
    router = dispatcher(fleet)
    biased = asyncio.create_task(collect(router, request(logit_bias={5: 1.0})))
    await turn()
    assert not fleet.sent
    plain = asyncio.create_task(collect(router, request()))
    await turn()
    assert [worker for worker, _ in fleet.sent] == ["p"]
    fleet.there = fleet.there + newer
    fleet.listener.room_changed()
    await turn()
    assert [worker for worker, _ in fleet.sent] == ["p", "p2"]
    submit = fleet.sent[1][1].submit
    assert (submit.receiver.id, dict(submit.request.sampling.logit_bias)) == ("d2", {5: 1.0})
    for task in (biased, plain):
        task.cancel()


async def test_what_no_worker_knows_is_refused_by_its_version(fleet: ScriptedFleet) -> None:
    router = dispatcher(fleet, queue_timeout_s=0.01)
    with pytest.raises(UnavailableError, match="none of them speaks version 2 of the protocol"):
        await collect(router, request(presence_penalty=0.5))
    assert not fleet.sent


async def test_a_policy_that_does_not_look_sends_nothing_to_a_worker_that_does_not_know_it(
    fleet: ScriptedFleet,
) -> None:
    there = fleet.there
    fleet.there = [*there, replace(there[0], id="p2", protocol=2)]

    class Blind(LeastLoaded):
        def choose(self, snapshot: Snapshot, query: PlacementQuery) -> Placement:
            return Placement(sender=there[0])

    router = dispatcher(fleet, Blind())
    with pytest.raises(UnavailableError, match="chose worker p, which does not speak version 2 of the protocol"):
        await collect(router, request(repetition_penalty=1.2))
    assert not fleet.sent
    plain = asyncio.create_task(collect(router, request()))
    await turn()
    assert [worker for worker, _ in fleet.sent] == ["p"]
    plain.cancel()
