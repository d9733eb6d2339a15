"""Mixture: several policies that score, by weights."""

from __future__ import annotations

from collections.abc import Sequence

from rtp_llm.router.placement.policy import (
    FleetEvent,
    Placement,
    PlacementQuery,
    Prediction,
    Predictor,
    ScoringPolicy,
    Snapshot,
    watches_caches,
)


class Mixture:
    """Of all that its parts propose the placement with the least sum of weight times score; of equals one by lot. Where one
    part places nothing now, nothing is placed. REQUIRES: at least one part."""

    def __init__(self, parts: Sequence[tuple[ScoringPolicy, float]]) -> None:
        self._parts = parts
        self._predictor = next((policy for policy, _ in parts if isinstance(policy, Predictor)), None)
        self.watches_caches = any(watches_caches(policy) for policy, _ in parts)

    def observe(self, events: Sequence[FleetEvent]) -> None:
        for policy, _ in self._parts:
            policy.observe(events)

    def choose(self, snapshot: Snapshot, query: PlacementQuery) -> Placement | None:
        proposed: dict[tuple[str, str | None], Placement] = {}
        for policy, _ in self._parts:
            proposals = policy.proposals(snapshot, query)
            if proposals is None:
                return None
            for each in proposals:
                proposed[each.sender.id, None if each.receiver is None else each.receiver.id] = each
        if not proposed:
            return None
        placement = self._best(list(proposed.values()), query)
        for policy, _ in self._parts:
            policy.placed(placement, query)
        return placement

    def predicted(self, snapshot: Snapshot, query: PlacementQuery) -> Prediction | None:
        """By the first part that predicts."""
        return None if self._predictor is None else self._predictor.predicted(snapshot, query)

    def _best(self, placements: Sequence[Placement], query: PlacementQuery) -> Placement:
        sums = [0.0] * len(placements)
        for policy, weight in self._parts:
            for i, score in enumerate(policy.scores(placements, query)):
                sums[i] += weight * score
        least = min(sums)
        return query.random.choice([each for each, total in zip(placements, sums, strict=True) if total == least])
