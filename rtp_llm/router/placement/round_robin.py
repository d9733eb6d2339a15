"""RoundRobin: each pool in turn."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rtp_llm.router.placement.policy import FleetEvent, Placement, PlacementQuery, Snapshot
from rtp_llm.router.placement.ranking import nth
from rtp_llm.router.placement.roster import Group, Roster


class RoundRobin:
    """Each pool in turn, in order of worker id, decode workers without a free slot passed over. After a round of pairs (the
    least common multiple of the pools' sizes) the receivers shift by one, so that in time every sender meets every receiver.
    The pools take turns of their own: what runs alone is no turn of the receivers."""

    def __init__(self) -> None:
        self._roster = Roster(sender_key=lambda view: view.id, receiver_key=lambda view: view.id)
        self._placed = 0
        self._handed_over = 0

    def observe(self, events: Sequence[FleetEvent]) -> None:
        self._roster.observe(events)

    def choose(self, snapshot: Snapshot, query: PlacementQuery) -> Placement | None:
        placement = self._roster.place(snapshot, query, self._sender, self._receiver)
        if placement is not None:
            self._placed += 1
            self._handed_over += placement.receiver is not None
        return placement

    def _sender(self, groups: list[Group]) -> str:
        rankings = [group.senders for group in groups]
        return nth(rankings, self._placed % sum(map(len, rankings)))

    def _receiver(self, groups: list[Group]) -> str:
        rankings = [group.receivers for group in groups]
        number = sum(map(len, rankings))
        shift = self._handed_over // math.lcm(self._roster.num_senders, number)
        return nth(rankings, (self._handed_over + shift) % number)
