"""Placement policies over written-out fleets."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from rtp_llm.config import Config
from rtp_llm.router.placement import DECODE, PREFILL, Placement, PlacementQuery, Policy, ViewChanged, WorkerView
from rtp_llm.router.placement.least_loaded import LeastLoaded
from rtp_llm.router.placement.registry import POLICIES, policy_named
from rtp_llm.router.placement.round_robin import RoundRobin


def worker(name: str, pool: str, **fields: object) -> WorkerView:
    return WorkerView(id=name, epoch=1, pool=pool, **{"max_queued_tokens": 100, **fields})  # type: ignore[arg-type]


FLEET = [
    worker("p0", PREFILL, queued_tokens=50),
    worker("p1", PREFILL, queued_tokens=10),
    worker("d0", DECODE, running=3),
    worker("d1", DECODE, running=9),
]


def placements(
    policy: Policy, fleet: Sequence[WorkerView], query: PlacementQuery, count: int
) -> list[Placement | None]:
    policy.observe([ViewChanged(view) for view in fleet])
    snapshot = {view.id: view for view in fleet}
    return [policy.choose(snapshot, query) for _ in range(count)]


def least_loaded(fleet: Sequence[WorkerView], query: PlacementQuery) -> Placement | None:
    return placements(LeastLoaded(), fleet, query, 1)[0]


def query(**fields: object) -> PlacementQuery:
    return PlacementQuery(prompt_tokens=8, random=random.Random(0), **fields)  # type: ignore[arg-type]


def test_least_loaded_takes_the_shortest_queue_and_the_fewest_sequences() -> None:
    placement = least_loaded(FLEET, query())
    assert placement is not None and placement.receiver is not None
    assert (placement.sender.id, placement.receiver.id) == ("p1", "d0")


def test_least_loaded_spreads_over_workers_near_the_best() -> None:
    fleet = [worker(f"p{i}", PREFILL, queued_tokens=10) for i in range(4)]
    chosen = {placed.sender.id for placed in placements(LeastLoaded(), fleet, query(), 200) if placed}
    assert chosen == {"p0", "p1", "p2", "p3"}


def round_robin_pairs(fleet: list[WorkerView], count: int) -> list[tuple[str, str]]:
    turns = placements(RoundRobin(), fleet, query(), count)
    return [(p.sender.id, p.receiver.id) for p in turns if p and p.receiver]


def test_round_robin_takes_turns_in_each_pool_and_changes_the_pairs() -> None:
    assert round_robin_pairs(FLEET, 4) == [("p0", "d0"), ("p1", "d1"), ("p0", "d1"), ("p1", "d0")]


@pytest.mark.parametrize(("prefill", "decode"), [(2, 2), (1, 3), (3, 1), (2, 3), (4, 2), (2, 4), (4, 6)])
def test_in_round_robin_every_sender_meets_every_receiver_equally_often(prefill: int, decode: int) -> None:
    fleet = [worker(f"p{i}", PREFILL) for i in range(prefill)] + [worker(f"d{i}", DECODE) for i in range(decode)]
    pairs = Counter(round_robin_pairs(fleet, prefill * decode * decode))
    assert len(pairs) == prefill * decode
    assert set(pairs.values()) == {decode}


def test_round_robins_pools_take_turns_of_their_own() -> None:
    policy = RoundRobin()
    placements(policy, FLEET, query(must_run_alone=True), 3)
    placements(policy, FLEET, query(), 1)
    [placement] = placements(policy, FLEET, query(), 1)
    assert placement is not None and placement.receiver is not None
    assert (placement.sender.id, placement.receiver.id) == ("p0", "d1")


def test_a_full_or_draining_worker_is_not_chosen() -> None:
    fleet = [worker("p0", PREFILL, queued_tokens=100), worker("p1", PREFILL, draining=True)]
    assert least_loaded(fleet, query()) is None


def test_a_pool_alone_serves_by_itself() -> None:
    for pool in (PREFILL, DECODE):
        placement = least_loaded([worker("only", pool)], query())
        assert placement is not None and placement.sender.id == "only" and placement.receiver is None


def test_a_retry_prefers_the_worker_that_caches_the_prompt() -> None:
    placement = least_loaded(FLEET, query(prefer=["p0"]))
    assert placement is not None and placement.sender.id == "p0"


def test_a_preferred_receiver_that_prefills_decodes_alone_or_elsewhere() -> None:
    placement = least_loaded([FLEET[0], FLEET[2]], query(prefer=["d0"]))
    assert placement is not None and placement.sender.id == "d0" and placement.receiver is None


def test_two_released_run_alone() -> None:
    placement = least_loaded(FLEET, query(must_run_alone=True))
    assert placement is not None and placement.receiver is None


def test_what_must_run_alone_goes_where_all_of_it_fits() -> None:
    small, large = worker("p0", PREFILL, max_model_len=50), worker("p1", PREFILL, max_model_len=90, queued_tokens=80)
    fleet = [small, large, worker("d0", DECODE, max_model_len=200)]
    for total, expected in [(50, "p0"), (60, "p1"), (100, "d0")]:
        placement = least_loaded(fleet, query(must_run_alone=True, total_tokens=total, prefer=["p0"]))
        assert placement is not None and placement.receiver is None and placement.sender.id == expected


def test_of_a_handover_s_needs_to_hold_the_prompt_only() -> None:
    small, decode = worker("p0", PREFILL, max_model_len=9), worker("d0", DECODE, max_model_len=200)
    placement = least_loaded([small, decode], query(total_tokens=100))  # 8 of them are the prompt
    assert placement is not None and placement.receiver == decode and placement.sender == small
    too_small = replace(small, max_model_len=8)
    placement = least_loaded([too_small, decode], query(total_tokens=100))
    assert placement is not None and placement.receiver is None and placement.sender == decode
    stranger = replace(small, layout="another")
    placement = least_loaded([stranger, decode], query(total_tokens=100))
    assert placement is not None and placement.receiver is None and placement.sender == decode


def test_a_draining_pool_is_stood_in_for_by_the_other_which_runs_alone() -> None:
    fleet = [worker("p0", PREFILL, draining=True), worker("d0", DECODE), worker("d1", DECODE)]
    placement = least_loaded(fleet, query())
    assert placement is not None and placement.sender.pool == DECODE and placement.receiver is None


@pytest.mark.parametrize("make", [LeastLoaded, RoundRobin])
def test_no_handover_is_planned_beyond_the_receivers_free_slots(make: Callable[[], Policy]) -> None:
    fleet = [worker("p0", PREFILL), worker("d0", DECODE, free_slots=0), worker("d1", DECODE, running=5, free_slots=1)]
    for placement in placements(make(), fleet, query(), 4):
        assert placement is not None and placement.receiver is not None and placement.receiver.id == "d1"
    assert placements(make(), fleet[:2], query(), 1) == [None]
    [alone] = placements(make(), fleet[:2], query(must_run_alone=True), 1)  # waits for a slot before its first token
    assert alone is not None and alone.receiver is None


def test_a_decode_worker_without_room_for_the_prompt_is_passed_over() -> None:
    fleet = [
        worker("p0", PREFILL),
        worker("d0", DECODE, running=0, free_blocks=1, block_tokens=4),
        worker("d1", DECODE, running=5, free_blocks=9, block_tokens=4),
    ]
    placement = least_loaded(fleet, query())
    assert placement is not None and placement.receiver is not None and placement.receiver.id == "d1"


@pytest.mark.parametrize("make", [LeastLoaded, RoundRobin])
@pytest.mark.parametrize(
    ("tokens", "pair"),
    [(100, ("p", "d")), (101, ("p", None)), (201, None)],
    ids=["both hold it", "the sender alone", "nobody"],
)
def test_a_request_runs_where_context_and_pool_hold_it(
    make: Callable[[], Policy], tokens: int, pair: tuple[str, str | None] | None
) -> None:
    workers = [worker("p", PREFILL, max_model_len=200), worker("d", DECODE, max_model_len=100)]
    [placement] = placements(make(), workers, query(total_tokens=tokens), 1)
    found = placement and (placement.sender.id, placement.receiver.id if placement.receiver else None)
    assert found == pair


@pytest.mark.parametrize("make", [LeastLoaded, RoundRobin])
def test_kv_is_handed_over_between_equal_layouts_only(make: Callable[[], Policy]) -> None:
    workers = [worker("p", PREFILL, layout="a"), worker("d0", DECODE, layout="b"), worker("d1", DECODE, layout="a")]
    [placement] = placements(make(), workers, query(), 1)
    assert placement is not None and placement.receiver is not None and placement.receiver.id == "d1"
    [placement] = placements(make(), workers[:2], query(), 1)
    assert placement is not None and (placement.sender.id, placement.receiver) == ("p", None)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("newer", [{"p1", "d1"}, {"p0"}, {"d0"}, set()])
def test_a_request_goes_only_to_workers_that_know_all_that_it_asks_for(policy: str, newer: set[str]) -> None:
    fleet = [
        worker(name, pool, protocol=2 if name in newer else 1, block_tokens=16, free_blocks=99)
        for name, pool in (("p0", PREFILL), ("p1", PREFILL), ("d0", DECODE), ("d1", DECODE))
    ]
    for placement in placements(policy_named(policy, Config()), fleet, query(protocol=2), 8):
        assert (placement is not None) == bool(newer)
        if placement is not None:
            assert {each.id for each in (placement.sender, placement.receiver) if each} <= newer
    assert placements(policy_named(policy, Config()), fleet, query(), 1) != [None]
