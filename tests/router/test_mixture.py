"""Several policies by weights."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from rtp_llm.config import load_config
from rtp_llm.errors import ConfigError
from rtp_llm.router.placement import (
    PREFILL,
    FleetEvent,
    Placement,
    PlacementQuery,
    Prediction,
    ScoringPolicy,
    Snapshot,
    StepMeasured,
    ViewChanged,
    WorkerView,
    policy_of,
    watches_caches,
)
from rtp_llm.router.placement.affinity import Affinity
from rtp_llm.router.placement.cost import Cost
from rtp_llm.router.placement.least_loaded import LeastLoaded
from rtp_llm.router.placement.mixture import Mixture
from rtp_llm.router.placement.step_cost import Step, StepCost

QUERY = PlacementQuery(prompt_tokens=1000, total_tokens=1100, session="s")
VIEWS = {name: WorkerView(id=name, epoch=1, pool=PREFILL) for name in "abcd"}


class Scripted:
    """Proposes some workers, and finds them as bad as it is told."""

    def __init__(self, proposed: str | None, **scores: float) -> None:
        self._proposed = proposed
        self._scores = scores
        self.heard: list[FleetEvent] = []
        self.told: list[str] = []

    def observe(self, events: Sequence[FleetEvent]) -> None:
        self.heard += events

    def choose(self, snapshot: Snapshot, query: PlacementQuery) -> Placement | None:
        raise AssertionError("a mixture chooses")

    def proposals(self, snapshot: Snapshot, query: PlacementQuery) -> Sequence[Placement] | None:
        return None if self._proposed is None else [Placement(sender=snapshot[name]) for name in self._proposed]

    def scores(self, placements: Sequence[Placement], query: PlacementQuery) -> list[float]:
        return [self._scores.get(each.sender.id, 0.0) for each in placements]

    def placed(self, placement: Placement, query: PlacementQuery) -> None:
        self.told.append(placement.sender.id)


def chosen(*parts: tuple[ScoringPolicy, float]) -> str | None:
    placement = Mixture(parts).choose(VIEWS, QUERY)
    return placement and placement.sender.id


def test_the_least_weighted_sum_is_placed_whoever_proposed_it_and_all_are_told() -> None:
    fast, near = Scripted("ab", a=0.1, b=0.4, c=0.6), Scripted("c", a=1.0, b=0.5, c=0.0)
    assert chosen((fast, 1.0), (near, 0.1)) == "a"
    assert chosen((fast, 1.0), (near, 1.0)) == "c"
    assert chosen((fast, 1.0), (near, 0.45)) == "a" and chosen((fast, 1.0), (near, 0.55)) == "c"
    assert fast.told == near.told == ["a", "c", "a", "c"]


def test_nothing_is_placed_where_one_part_places_nothing_now() -> None:
    assert chosen((Scripted("a"), 1.0), (Scripted(None), 1.0)) is None
    assert chosen((Scripted(""), 1.0), (Scripted(""), 1.0)) is None
    assert chosen((Scripted("a"), 1.0), (Scripted(""), 1.0)) == "a"


def test_equals_are_chosen_by_lot() -> None:
    parts = ((Scripted("abc", c=1.0), 1.0),)
    query = replace(QUERY, random=random.Random(1))
    found = [Mixture(parts).choose(VIEWS, query) for _ in range(30)]
    assert {each.sender.id for each in found if each} == {"a", "b"}


def test_every_part_hears_what_happens() -> None:
    parts = [Scripted("a"), Scripted("b")]
    events = [ViewChanged(VIEWS["a"])]
    Mixture([(part, 1.0) for part in parts]).observe(events)
    assert [part.heard for part in parts] == [events, events]


def test_it_watches_caches_and_predicts_if_a_part_does() -> None:
    class Predicts(Scripted):
        def predicted(self, snapshot: Snapshot, query: PlacementQuery) -> Prediction:
            return Prediction(3.0, 1.0)

    class Watches(Scripted):
        watches_caches = True

    plain = Mixture([(Scripted("a"), 1.0)])
    assert not watches_caches(plain) and plain.predicted(VIEWS, QUERY) is None
    whole = Mixture([(Scripted("a"), 1.0), (Watches("a"), 1.0), (Predicts("a"), 1.0)])
    assert watches_caches(whole) and whole.predicted(VIEWS, QUERY) == (3.0, 1.0)


# --- cost and affinity


def test_a_session_stays_with_its_worker_until_leaving_gains_more_than_its_weight() -> None:
    """A prompt token takes 0.1 ms, the target is 1 s: 5,000 tokens ahead are 0.25 and more of it."""
    known = StepCost(base_s=0.004, row_s=1e-4)
    views = [
        WorkerView(id=f"p{i}", epoch=1, pool=PREFILL, max_queued_tokens=1 << 20, free_blocks=9999, block_tokens=16)
        for i in range(4)
    ]
    alone = Affinity()
    alone.observe([ViewChanged(view) for view in views])
    own = alone.choose({view.id: view for view in views}, QUERY)
    assert own is not None
    stays = {}
    for ahead in (0, 3000, 9000):
        fleet = [replace(each, queued_tokens=ahead if each.id == own.sender.id else 0) for each in views]
        mixture = Mixture([(Cost(ttft_target_s=1.0, itl_target_s=0.1, known=known), 1.0), (Affinity(), 0.5)])
        mixture.observe([ViewChanged(view) for view in fleet])
        placement = mixture.choose({view.id: view for view in fleet}, QUERY)
        assert placement is not None
        stays[ahead] = placement.sender.id == own.sender.id
    assert stays == {0: True, 3000: True, 9000: False}


def test_a_cost_that_others_are_mixed_with_knows_what_was_placed() -> None:
    cost = Cost(ttft_target_s=1.0, itl_target_s=0.1, known=StepCost(base_s=0.004, row_s=1e-4))
    views = [replace(VIEWS[name], max_queued_tokens=1 << 20, free_blocks=9999) for name in "ab"]
    mixture = Mixture([(cost, 1.0)])
    mixture.observe([ViewChanged(view) for view in views])
    placed = [mixture.choose({view.id: view for view in views}, QUERY) for _ in range(4)]
    assert sorted(each.sender.id for each in placed if each) == ["a", "a", "b", "b"]
    slow = Step.of_prompt(100)
    cost.observe([StepMeasured("a", slow, 1.0)])
    assert cost.proposals({}, QUERY)


def test_its_own_choice_is_the_one_that_a_policy_scores_best() -> None:
    for policy in (Cost(ttft_target_s=1.0, itl_target_s=0.1, known=StepCost(base_s=0.004, row_s=1e-4)), LeastLoaded()):
        views = {
            name: replace(
                view, queued_tokens=100 * i, running=i, max_queued_tokens=1000, free_slots=4 - i, free_blocks=9999
            )
            for i, (name, view) in enumerate(VIEWS.items())
        }
        policy.observe([ViewChanged(view) for view in views.values()])
        scores = policy.scores([Placement(sender=view) for view in views.values()], QUERY)
        assert scores == sorted(set(scores)) and scores[0] == min(scores)
        placement = policy.choose(views, QUERY)
        assert placement is not None and placement.sender.id == "a"


# --- As configured


def test_a_mapping_of_names_is_a_mixture_in_yaml_and_on_the_command_line() -> None:
    for given in ({"cost": 1, "affinity": 0.5}, '{"cost": 1, "affinity": 0.5}'):
        config = load_config(overrides={"router.policy": given}, environ={})
        assert config.router.policy == {"cost": 1.0, "affinity": 0.5}
        assert isinstance(policy_of(config), Mixture)
    assert isinstance(policy_of(load_config(overrides={"router.policy": "affinity"}, environ={})), Affinity)


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"cost": 0}, r"router.policy: the weight of cost must be a number above 0, got {'cost': 0}"),
        ({"cost": "much"}, r"router.policy: the weight of cost must be a number above 0"),
        ({}, r"router.policy: must name at least one policy"),
        ({"cost": 1, "luck": 1}, r"router.policy: 'luck' is unknown, there are affinity, cost, "),
        ({"cost": 1, "round_robin": 1}, r"router.policy: 'round_robin' scores nothing, so it can't be mixed"),
        ("luck", r"router.policy: 'luck' is unknown"),
        (5, r"router.policy"),
    ],
)
def test_a_mixture_that_can_not_be_is_refused_by_name(policy: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        policy_of(load_config(overrides={"router.policy": policy}, environ={}))
