"""Whose turn it is, over written-out waiters."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from math import log2

import pytest

from rtp_llm.router.fair_queue import FairQueue

touched = Counter[str]()


@dataclass(frozen=True)
class Waits:
    tenant: str
    arrival: int
    new_tokens: int = 10
    priority: int = 0


def serve(queue: FairQueue[Waits]) -> Waits:
    """The next, charged as the dispatcher does."""
    waiter = queue.first
    assert waiter is not None
    queue.remove(waiter)
    queue.charge(waiter.tenant, waiter.new_tokens)
    return waiter


def queue_of(*waiters: Waits, **weights: float) -> FairQueue[Waits]:
    queue = FairQueue[Waits](weights)
    for waiter in waiters:
        queue.put(waiter)
    return queue


def test_one_tenants_requests_go_by_priority_then_in_order_of_arrival() -> None:
    queue = queue_of(Waits("", 3), Waits("", 1), Waits("", 2, priority=-1), Waits("", 4, priority=5), Waits("", 5))
    assert [serve(queue).arrival for _ in range(5)] == [2, 1, 3, 5, 4]
    assert queue.first is None and len(queue) == 0


def test_a_tenants_priorities_do_not_go_before_another_tenant() -> None:
    queue = queue_of(*(Waits("a", i, priority=-9) for i in range(3)), Waits("b", 9))
    assert [serve(queue).tenant for _ in range(4)] == ["a", "b", "a", "a"]


def test_who_asks_for_little_is_served_between_the_requests_of_who_floods() -> None:
    queue = queue_of(*(Waits("flood", i) for i in range(100)))
    for _ in range(10):
        serve(queue)
    queue.put(Waits("little", 200))
    assert "little" in {serve(queue).tenant for _ in range(2)}


def test_tokens_are_shared_by_weights_whatever_the_size_of_requests() -> None:
    draw = random.Random(0)
    waiters = [Waits(t, i * 3 + n, draw.randrange(1, most)) for i in range(3000) for n, (t, most) in enumerate(SIZES)]
    queue = queue_of(*waiters, b=2.0, c=0.5)
    served = Counter[str]()
    while sum(served.values()) < 70_000:
        waiter = serve(queue)
        served[waiter.tenant] += waiter.new_tokens
    for tenant, weight in (("a", 1), ("b", 2), ("c", 0.5)):
        assert served[tenant] == pytest.approx(20_000 * weight, rel=0.05)


SIZES = (("a", 200), ("b", 50), ("c", 100))


def test_output_tokens_are_charged_whether_their_tenant_waits_or_not() -> None:
    queue = queue_of(Waits("a", 1), Waits("b", 2), Waits("a", 3))
    queue.charge("a", 1)
    assert serve(queue).tenant == "b"
    queue.charge("b", 500)
    queue.put(Waits("b", 4))
    assert [serve(queue).tenant for _ in range(3)] == ["a", "a", "b"]


def test_idleness_is_not_saved_up() -> None:
    """Who was idle while others were served is lifted to the least served of them, and has no more than its turn."""
    queue = queue_of(*(Waits(t, i * 2 + n) for i in range(100) for n, t in enumerate("ab")))
    for _ in range(100):
        serve(queue)
    for i in range(100):
        queue.put(Waits("idle", 1000 + i))
    assert Counter(serve(queue).tenant for _ in range(30)) == {"idle": 10, "a": 10, "b": 10}


def test_who_comes_to_an_empty_queue_is_lifted_to_who_left_it_last() -> None:
    queue = queue_of(*(Waits("busy", i) for i in range(50)))
    while queue.first is not None:
        serve(queue)
    for i in range(20):
        queue.put(Waits("idle", 100 + i))
        queue.put(Waits("busy", 200 + i))
    assert Counter(serve(queue).tenant for _ in range(10)) == {"idle": 5, "busy": 5}


def test_a_debt_is_not_forgotten_while_its_tenant_does_not_wait() -> None:
    queue = queue_of(Waits("a", 1), *(Waits("b", 10 + i) for i in range(20)))
    queue.charge("a", 45)
    queue.remove(Waits("a", 1))
    queue.put(Waits("a", 2))
    assert [serve(queue).tenant for _ in range(6)] == ["b"] * 5 + ["a"]


def test_who_leaves_is_out_and_one_that_is_not_there_changes_nothing() -> None:
    queue = queue_of(Waits("a", 1), Waits("b", 2), Waits("a", 3))
    queue.remove(Waits("a", 1))
    queue.remove(Waits("a", 1))
    queue.remove(Waits("c", 9))
    assert (len(queue), queue.num_waiting("a"), queue.num_waiting("b"), queue.num_waiting("c")) == (2, 1, 1, 0)
    assert [serve(queue).arrival for _ in range(2)] == [3, 2] and queue.first is None


def test_ahead_of_a_newcomer_are_its_tenants_own_and_meanwhile_the_others_by_weights() -> None:
    queue = queue_of(
        *(Waits("a", i, 100) for i in range(3)), *(Waits("b", 10 + i, 100) for i in range(9)), Waits("c", 30, 50), b=2.0
    )
    assert queue.tokens_ahead("new", 0) == 0
    assert queue.tokens_ahead("a", 0) == 300 + 300 * 3  # b's and c's weight is 3
    assert queue.tokens_ahead("c", 0) == 50 + 50 * 3
    assert queue.tokens_ahead("b", 0) == 900 + 350  # which is all that the others have
    queue.put(Waits("a", 40, 7, priority=5))
    assert queue.tokens_ahead("a", 0) == 300 + 300 * 3 and queue.tokens_ahead("a", 5) == 307 + 307 * 3
    assert queue.tokens_ahead("a", -1) == 0


def test_what_is_counted_is_what_waits_after_any_coming_and_going() -> None:
    draw, there, number = random.Random(1), dict[int, Waits](), 0
    queue = FairQueue[Waits]({"t1": 3.0})
    for _ in range(3000):
        if draw.random() < 0.5 or not there:
            number += 1
            waiter = Waits(f"t{draw.randrange(5)}", number, draw.randrange(1, 99), draw.randrange(-2, 3))
            there[number] = waiter
            queue.put(waiter)
        elif draw.random() < 0.5:
            queue.remove(there.pop(draw.choice(list(there))))
        else:
            served = serve(queue)
            own = [each for each in there.values() if each.tenant == served.tenant]
            assert served == min(own, key=lambda each: (each.priority, each.arrival))
            del there[served.arrival]
        tenant = f"t{draw.randrange(5)}"
        own = [each for each in there.values() if each.tenant == tenant]
        assert (len(queue), queue.num_waiting(tenant)) == (len(there), len(own))
        before = sum(each.new_tokens for each in own if each.priority <= 1)
        weights = {each.tenant: 3.0 if each.tenant == "t1" else 1.0 for each in there.values()}
        others = sum(each.new_tokens for each in there.values() if each.tenant != tenant)
        share = sum(weights.values()) / weights.get(tenant, 1.0) - 1
        assert queue.tokens_ahead(tenant, 1) == pytest.approx(before + min(others, before * share))


class Figure(float):
    """Counts how often it is compared."""

    def __lt__(self, other: float) -> bool:
        touched["comparisons"] += 1
        return float(self) < other

    def __add__(self, other: float) -> Figure:
        return Figure(float(self) + other)

    __radd__ = __add__

    def __rtruediv__(self, other: float) -> Figure:
        return Figure(other / float(self))


def test_a_turn_a_newcomer_and_a_charge_look_at_few_of_many_tenants() -> None:
    for size in (16, 256, 4096):
        weights = {f"t{i}": Figure(1.0) for i in range(size)}
        queue = FairQueue[Waits](weights)
        for i, tenant in enumerate(weights):
            queue.charge(tenant, i)
            queue.put(Waits(tenant, i))
            queue.put(Waits(tenant, size + i))
        for i in range(20):
            touched.clear()
            serve(queue)
            queue.charge(f"t{i * 7 % size}", 3)
            queue.put(Waits("t0", 2 * size + i))
            assert 0 < touched["comparisons"] <= 12 * log2(size)


def test_weights_that_change_hold_for_what_is_served_from_then_on() -> None:
    waiters = [Waits(tenant, 2 * number + place) for number in range(60) for place, tenant in enumerate("ab")]
    queue = queue_of(*waiters)
    assert Counter(serve(queue).tenant for _ in range(20)) == {"a": 10, "b": 10}
    queue.reweigh({"a": 3.0})
    assert Counter(serve(queue).tenant for _ in range(40)) == {"a": 30, "b": 10}
    assert queue.tokens_ahead("a", 0) == pytest.approx(200 + 200 / 3)  # its own, and a third as much of b's
