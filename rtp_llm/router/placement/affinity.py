"""Affinity: the requests of one session go to the same workers, while these are not overloaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice

from rtp_llm.router.placement.least_loaded import roomy_receiver
from rtp_llm.router.placement.policy import (
    FleetEvent,
    Placement,
    PlacementQuery,
    Snapshot,
    ViewChanged,
    WorkerGone,
    WorkerView,
)
from rtp_llm.router.placement.ranking import near_best
from rtp_llm.router.placement.rendezvous import FIRST, Rendezvous, number_of
from rtp_llm.router.placement.roster import Group, Kind, Roster

MORE_SEQUENCES = 1.25  # than the receiver with the fewest, and SPARE_SEQUENCES: a session's receiver may have
SPARE_SEQUENCES = 2


class Affinity:
    """S: the first in the session's order whose queue is longer than the shortest by no more than the prompt, which it may have
    in its cache. R: the first with room whose sequences are not many more than the fewest. Else as least_loaded, and so for a
    request without a session."""

    def __init__(self) -> None:
        self._roster = Roster(sender_key=lambda view: view.queued_tokens, receiver_key=lambda view: view.running)
        self._kinds: dict[str, Kind] = {}
        self._orders: dict[Kind, Rendezvous] = {}

    # --- Policy

    def observe(self, events: Sequence[FleetEvent]) -> None:
        self._roster.observe(events)
        for event in events:
            if isinstance(event, ViewChanged):
                self._enter(event.view)
            elif isinstance(event, WorkerGone):
                self._leave(event.id)

    def choose(self, snapshot: Snapshot, query: PlacementQuery) -> Placement | None:
        return self._place(snapshot, query, overload_counts=True)

    # --- ScoringPolicy

    def proposals(self, snapshot: Snapshot, query: PlacementQuery) -> Sequence[Placement] | None:
        """The session's own, however loaded they are, together and its S alone."""
        together = self._place(snapshot, query, overload_counts=False)
        if together is None or together.receiver is None or not query.session:
            return None if together is None else [together]
        alone = self._place(snapshot, replace(query, must_run_alone=True), overload_counts=False)
        return [together] if alone is None else [together, alone]

    def scores(self, placements: Sequence[Placement], query: PlacementQuery) -> list[float]:
        """How far from the first in the session's order: 0 that one, 3/4 the second, 7/8 the third, 1 none of the first few; of
        S and R half each; S counts 1 where a decode worker runs it alone."""
        if not query.session:
            return [0.0] * len(placements)
        session = number_of(query.session)
        return [self._score(placement, session) for placement in placements]

    def placed(self, placement: Placement, query: PlacementQuery) -> None: ...

    # --- Inside

    def _place(self, snapshot: Snapshot, query: PlacementQuery, *, overload_counts: bool) -> Placement | None:
        session = number_of(query.session) if query.session else None

        def sender(groups: list[Group]) -> str:
            longest = min(group.senders.best for group in groups) + query.prompt_tokens
            for worker in self._order(groups, session):
                if any(worker in group.senders for group in groups) and not (
                    overload_counts and snapshot[worker].queued_tokens > longest
                ):
                    return worker
            return near_best([group.senders for group in groups], query.random)

        def receiver(groups: list[Group]) -> str:
            most = MORE_SEQUENCES * min(group.receivers.best for group in groups) + SPARE_SEQUENCES
            for worker in self._order(groups, session):
                view = snapshot[worker]
                if view.free_tokens <= query.prompt_tokens or not any(worker in group.receivers for group in groups):
                    continue
                if not (overload_counts and view.running > most):
                    return worker
            return roomy_receiver(groups, snapshot, query)

        return self._roster.place(snapshot, query, sender, receiver)

    def _order(self, groups: list[Group], session: int | None) -> Iterator[str]:
        if session is None:
            return iter(())
        found = [self._orders[group.kind].first(session) for group in groups]
        ordered = found[0] if len(found) == 1 else sorted(chain.from_iterable(found), reverse=True)
        return (worker for _, worker in islice(ordered, FIRST))

    def _score(self, placement: Placement, session: int) -> float:
        sender = self._distance(placement.sender.id, session)
        if placement.receiver is not None:
            return (sender + self._distance(placement.receiver.id, session)) / 2
        # Alone at a decode worker the prompt leaves nothing at the session's S, which the next one goes to.
        away = self._kinds[placement.sender.id].decodes and self._roster.num_senders > 0
        return (1 + sender) / 2 if away else sender

    def _distance(self, worker: str, session: int) -> float:
        order = [member for _, member in self._orders[self._kinds[worker]].first(session)]
        if worker not in order:
            return 1.0
        place = order.index(worker)
        return 1 - 0.5 ** (place + 1) if place else 0.0

    def _enter(self, view: WorkerView) -> None:
        kind = Kind.of(view)
        if view.draining or self._kinds.get(view.id, kind) != kind:
            self._leave(view.id)
        if view.draining or view.id in self._kinds:
            return
        self._kinds[view.id] = kind
        self._orders.setdefault(kind, Rendezvous()).add(view.id)

    def _leave(self, worker: str) -> None:
        kind = self._kinds.pop(worker, None)
        if kind is None:
            return
        self._orders[kind].remove(worker)
        if not self._orders[kind]:
            del self._orders[kind]
