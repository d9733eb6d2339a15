"""LeastLoaded: the shortest queue, then the fewest sequences."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from rtp_llm.router.placement.policy import FleetEvent, Placement, PlacementQuery, Snapshot, WorkerView
from rtp_llm.router.placement.ranking import near_best
from rtp_llm.router.placement.roster import Group, Roster

LOOKED_AT = 32  # decode workers that are looked at for one with room


class LeastLoaded:
    """The prefill worker with the fewest queued tokens, the decode worker with the fewest sequences (one with a free slot; one
    that has room for the prompt, if any has), by lot among those within 10% of the best."""

    def __init__(self) -> None:
        self._roster = Roster(sender_key=lambda view: view.queued_tokens, receiver_key=lambda view: view.running)

    def observe(self, events: Sequence[FleetEvent]) -> None:
        self._roster.observe(events)

    def choose(self, snapshot: Snapshot, query: PlacementQuery) -> Placement | None:
        return self._roster.place(
            snapshot,
            query,
            lambda groups: near_best([group.senders for group in groups], query.random),
            lambda groups: roomy_receiver(groups, snapshot, query),
        )

    # --- ScoringPolicy

    def proposals(self, snapshot: Snapshot, query: PlacementQuery) -> Sequence[Placement] | None:
        chosen = self.choose(snapshot, query)
        return None if chosen is None else [chosen]

    def scores(self, placements: Sequence[Placement], query: PlacementQuery) -> list[float]:
        """S's queue of what it takes, and the sequences of who decodes of its slots; half each."""
        return [(_queue(each.sender) + _slots(each.receiver or each.sender)) / 2 for each in placements]

    def placed(self, placement: Placement, query: PlacementQuery) -> None: ...


def _queue(view: WorkerView) -> float:
    return view.queued_tokens / max(view.max_queued_tokens, 1)


def _slots(view: WorkerView) -> float:
    return view.running / max(view.running + view.free_slots, 1)


def roomy_receiver(groups: list[Group], snapshot: Snapshot, query: PlacementQuery) -> str:
    """The fewest sequences, of those that have room for the prompt, if any has."""
    best = near_best([group.receivers for group in groups], query.random)
    if snapshot[best].free_tokens > query.prompt_tokens:
        return best
    roomiest = min((group.room.best, group.room[0]) for group in groups)[1]
    if snapshot[roomiest].free_tokens <= query.prompt_tokens:
        return best
    looked_at = (worker for group in groups for worker in islice(group.receivers, LOOKED_AT))
    roomy = [worker for worker in looked_at if snapshot[worker].free_tokens > query.prompt_tokens]
    return min(roomy, key=lambda worker: snapshot[worker].running, default=roomiest)
