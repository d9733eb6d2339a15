"""What a decision touches in a fleet of any size. Counted, not timed."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from math import log2
from typing import Any

import pytest

from rtp_llm.config import load_config
from rtp_llm.router.placement import DECODE, PREFILL, PlacementQuery, Policy, ViewChanged, WorkerView, policy_of

NAMES = ["affinity", "cost", "least_loaded", "prefix_aware", "round_robin", '{"cost": 1, "affinity": 0.5}']
SIZES = (16, 128, 1024)
VIEWS_A_DECISION = 68
COMPARISONS_A_STEP = 40  # times log2 of the fleet's size

touched = Counter[str]()


class Figure(int):
    """Counts how often it is compared."""

    def __lt__(self, other: Any) -> bool:
        touched["comparisons"] += 1
        return int(self) < other

    def __gt__(self, other: Any) -> bool:
        touched["comparisons"] += 1
        return int(self) > other

    def __eq__(self, other: object) -> bool:
        touched["comparisons"] += 1
        return int(self) == other

    __hash__ = int.__hash__


class CountingSnapshot(Mapping[str, WorkerView]):
    def __init__(self, views: list[WorkerView]) -> None:
        self._views = {view.id: view for view in views}

    def __getitem__(self, worker: str) -> WorkerView:
        touched["views"] += 1
        return self._views[worker]

    def __len__(self) -> int:
        return len(self._views)

    def __iter__(self) -> Iterator[str]:
        for worker in self._views:
            touched["views"] += 1
            yield worker


def views(count: int, draw: random.Random) -> list[WorkerView]:
    return [
        WorkerView(
            id=f"w{number:04}",
            epoch=1,
            pool=PREFILL if number % 2 else DECODE,
            queued_tokens=Figure(draw.randrange(1000)),
            max_queued_tokens=5000,
            running=Figure(draw.randrange(100)),
            free_blocks=draw.randrange(2),  # few have room for the prompt
            block_tokens=64,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_decision_looks_at_as_few_workers_in_a_large_fleet_as_in_a_small_one(name: str) -> None:
    draw = random.Random(0)
    for size in SIZES:
        policy: Policy = policy_of(load_config(overrides={"router.policy": name}, environ={}))
        there = views(size, draw)
        policy.observe([ViewChanged(view) for view in there])
        snapshot = CountingSnapshot(there)
        for _ in range(20):
            touched.clear()
            assert policy.choose(snapshot, PlacementQuery(prompt_tokens=60, session="s", random=draw)) is not None
            assert touched["views"] <= VIEWS_A_DECISION, size
            assert touched["comparisons"] <= COMPARISONS_A_STEP * log2(size), size


@pytest.mark.parametrize("name", NAMES)
def test_a_change_of_one_worker_is_found_its_place_without_a_look_at_the_others(name: str) -> None:
    draw = random.Random(0)
    for size in SIZES:
        policy = policy_of(load_config(overrides={"router.policy": name}, environ={}))
        policy.observe([ViewChanged(view) for view in views(size, draw)])
        for view in views(size, draw)[:20]:
            touched.clear()
            policy.observe([ViewChanged(view)])
            assert touched["comparisons"] <= COMPARISONS_A_STEP * log2(size), size
