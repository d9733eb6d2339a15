"""The requests of a session go to its own workers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from rtp_llm.router.placement import (
    DECODE,
    PREFILL,
    Placement,
    PlacementQuery,
    ViewChanged,
    WorkerGone,
    WorkerView,
)
from rtp_llm.router.placement import rendezvous as rendezvous_module
from rtp_llm.router.placement.affinity import Affinity
from rtp_llm.router.placement.rendezvous import Rendezvous, number_of

SESSIONS = [f"session {i}" for i in range(400)]


def worker(name: str, pool: str, **fields: object) -> WorkerView:
    return WorkerView(
        id=name,
        epoch=1,
        pool=pool,
        **{"max_queued_tokens": 16384, "free_blocks": 1000, "block_tokens": 16, "free_slots": 64, **fields},  # type: ignore[arg-type]
    )


FLEET = [worker(f"{pool[0]}{i}", pool) for pool in (PREFILL, DECODE) for i in range(8)]


class Bench:
    def __init__(self, views: list[WorkerView]) -> None:
        self.policy = Affinity()
        self.views = {view.id: view for view in views}
        self.policy.observe([ViewChanged(view) for view in views])

    def change(self, worker: str, **fields: object) -> None:
        self.views[worker] = replace(self.views[worker], **fields)  # type: ignore[arg-type]
        self.policy.observe([ViewChanged(self.views[worker])])

    def leave(self, worker: str) -> None:
        del self.views[worker]
        self.policy.observe([WorkerGone(worker)])

    def placed(self, session: str, **fields: object) -> Placement:
        query = PlacementQuery(**{"prompt_tokens": 1000, "total_tokens": 1100, "session": session, **fields})  # type: ignore[arg-type]
        placement = self.policy.choose(self.views, query)
        assert placement is not None
        return placement

    def names(self, session: str, **fields: object) -> tuple[str, str | None]:
        placement = self.placed(session, **fields)
        return placement.sender.id, placement.receiver.id if placement.receiver else None

    def all(self) -> dict[str, tuple[str, str | None]]:
        return {session: self.names(session) for session in SESSIONS}


def test_a_session_goes_to_the_same_workers_through_every_router_and_sessions_are_spread() -> None:
    placed = Bench(FLEET).all()
    other = Bench(FLEET[::-1])
    assert placed == other.all() == other.all()
    for place in (0, 1):
        counts = Counter(names[place] for names in placed.values())
        assert len(counts) == 8 and max(counts.values()) < 2 * min(counts.values())


@pytest.mark.parametrize(("left", "place"), [("p3", 0), ("d3", 1)])
def test_a_worker_that_leaves_moves_its_own_sessions_alone_and_takes_them_back(left: str, place: int) -> None:
    bench = Bench(FLEET)
    before = bench.all()
    view = bench.views[left]
    bench.leave(left)
    after = bench.all()
    for session, names in before.items():
        assert (names[place] == left) == (after[session] != names)
    assert len({after[session][place] for session, names in before.items() if names[place] == left}) > 3
    bench.views[left] = view
    bench.policy.observe([ViewChanged(view)])
    assert bench.all() == before


def test_a_worker_that_drains_gets_no_session() -> None:
    bench = Bench(FLEET)
    bench.change("p3", draining=True)
    assert "p3" not in {names[0] for names in bench.all().values()}
    bench.change("p3", draining=False)
    assert "p3" in {names[0] for names in bench.all().values()}


def test_a_sender_is_overloaded_when_its_queue_is_longer_than_the_shortest_by_more_than_the_prompt() -> None:
    bench = Bench(FLEET)
    own = bench.names("s")[0]
    for other in (view.id for view in FLEET if view.pool == PREFILL and view.id != own):
        bench.change(other, queued_tokens=500)
    bench.change(own, queued_tokens=1500)
    assert bench.names("s")[0] == own
    bench.change(own, queued_tokens=1501)
    second = bench.names("s")[0]
    assert second != own and {bench.names("s")[0] for _ in range(20)} == {second}  # the next of its order
    bench.change(own, queued_tokens=16384)  # it accepts nothing
    assert bench.names("s", prompt_tokens=100_000)[0] == second
    bench.change(own, queued_tokens=0)
    assert bench.names("s")[0] == own


def test_a_receiver_is_overloaded_when_it_runs_many_more_or_has_no_room() -> None:
    bench = Bench(FLEET)
    own = bench.names("s")[1]
    assert own is not None
    for other in (view.id for view in FLEET if view.pool == DECODE and view.id != own):
        bench.change(other, running=16)
    for fields, stays in (
        ({"running": 22}, True),
        ({"running": 23}, False),
        ({"running": 0, "free_slots": 0}, False),
        ({"free_slots": 64, "free_blocks": 1000 // 16}, False),
        ({"free_blocks": 1000}, True),
    ):
        bench.change(own, **fields)
        assert (bench.names("s")[1] == own) == stays, fields


def test_a_request_without_a_session_goes_to_the_least_loaded() -> None:
    bench = Bench(FLEET)
    for view in FLEET[1:8]:
        bench.change(view.id, queued_tokens=10)
    assert {bench.names("")[0] for _ in range(20)} == {"p0"}
    assert len({bench.names("")[1] for _ in range(60)}) > 4


def test_a_retry_prefers_the_worker_whose_cache_holds_the_prompt() -> None:
    bench = Bench(FLEET)
    other = next(view.id for view in FLEET if view.pool == PREFILL and view.id != bench.names("s")[0])
    assert bench.names("s", prefer=[other])[0] == other


def test_a_session_has_one_order_over_workers_of_several_kinds() -> None:
    views = [worker(f"p{i}", PREFILL, max_model_len=4096 if i % 2 else 8192) for i in range(8)]
    bench = Bench(views)
    placed = {session: bench.names(session)[0] for session in SESSIONS}
    assert len(set(placed.values())) == 8
    for session, own in placed.items():
        long = bench.names(session, total_tokens=6000)[0]
        assert int(long[1:]) % 2 == 0 and (long == own or int(own[1:]) % 2)


def test_scores_are_how_far_from_the_sessions_own_workers() -> None:
    bench = Bench(FLEET)
    order = [bench.names("s")]
    for _ in range(4):
        for name, pool in zip(order[-1], (PREFILL, DECODE), strict=True):
            assert name is not None
            full = {"queued_tokens": 16384} if pool == PREFILL else {"free_slots": 0}
            bench.change(name, **full)
        order.append(bench.names("s"))
    query = PlacementQuery(prompt_tokens=1000, session="s")
    pairs = [Placement(sender=bench.views[s], receiver=bench.views[r or ""]) for s, r in order]
    assert bench.policy.scores(pairs, query) == [0, 3 / 4, 7 / 8, 15 / 16, 1]
    mixed = Placement(sender=pairs[0].sender, receiver=pairs[2].receiver)
    alone = [Placement(sender=pair.sender) for pair in pairs[:2]]
    assert bench.policy.scores([mixed, *alone], query) == [7 / 16, 0, 3 / 4]
    at_receivers = [Placement(sender=pair.receiver) for pair in pairs[:2] if pair.receiver is not None]
    assert bench.policy.scores(at_receivers, query) == [1 / 2, 7 / 8]  # S gets nothing of it
    assert bench.policy.scores(pairs, replace(query, session="")) == [0] * 5


def test_its_own_workers_are_proposed_however_loaded_they_are_together_and_alone() -> None:
    bench = Bench(FLEET)
    own = bench.names("s")
    assert own[1] is not None
    bench.change(own[0], queued_tokens=9000)
    bench.change(own[1], running=60)
    query = PlacementQuery(prompt_tokens=1000, total_tokens=1100, session="s")
    proposals = bench.policy.proposals(bench.views, query)
    assert proposals is not None
    names = [(each.sender.id, each.receiver.id if each.receiver else None) for each in proposals]
    assert names == [own, (own[0], None)]
    assert len(bench.policy.proposals(bench.views, replace(query, session="")) or []) == 1
    [alone] = bench.policy.proposals(bench.views, replace(query, must_run_alone=True)) or []
    assert (alone.sender.id, alone.receiver) == (own[0], None)
    for view in FLEET[:8]:
        bench.change(view.id, queued_tokens=16384)
    assert bench.policy.proposals(bench.views, query) is None


# --- Rendezvous


def test_orders_are_remembered_of_a_bounded_number_of_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous_module, "MAX_SESSIONS", 10)
    members = Rendezvous()
    for name in "abcdef":
        members.add(name)
    first = [members.first(session) for session in range(30)]
    assert len(members._remembered) == 10
    assert members.first(25) is first[25]
    assert members.first(0) == first[0] and members.first(0) is not first[0]


def test_weights_are_the_same_in_every_process() -> None:
    members = Rendezvous()
    for name in "abc":
        members.add(name)
    assert number_of("a") == 69979763407995444
    assert members.first(number_of("s"))[0] == (2204669354254159024, "b")
