"""Roster: who may prefill and who may receive, in the orders that a policy asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from rtp_llm.router.placement.policy import (
    DECODE,
    FleetEvent,
    Placement,
    PlacementQuery,
    Snapshot,
    ViewChanged,
    WorkerGone,
    WorkerView,
)
from rtp_llm.router.placement.ranking import Key, Ranking


class Kind(NamedTuple):
    """Workers between which a decision about limits doesn't differ. A fleet has two or three kinds."""

    decodes: bool
    max_model_len: int
    layout: str
    protocol: int

    @classmethod
    def of(cls, view: WorkerView) -> Kind:
        return cls(view.pool == DECODE, view.max_model_len, view.layout, view.protocol)

    def takes(self, query: PlacementQuery, tokens: int) -> bool:
        """Whether it knows what is asked for, and can hold so many tokens of it."""
        return self.protocol >= query.protocol and (self.max_model_len == 0 or tokens <= self.max_model_len)


@dataclass(frozen=True)
class Group:
    """The workers of one kind that don't drain."""

    kind: Kind
    members: set[str] = field(default_factory=set)
    senders: Ranking = field(default_factory=Ranking)  # those that accept, by the policy's key of a sender
    full: Ranking = field(default_factory=Ranking)  # those that don't, by the same key
    receivers: Ranking = field(default_factory=Ranking)  # those with a free slot, by its key of a receiver
    room: Ranking = field(default_factory=Ranking)  # the same, most free KV first


class Roster:
    """REQUIRES: told of every event. A key is a function of the view alone."""

    def __init__(self, sender_key: Callable[[WorkerView], Key], receiver_key: Callable[[WorkerView], Key]) -> None:
        self._sender_key = sender_key
        self._receiver_key = receiver_key
        self._groups: dict[Kind, Group] = {}
        self._kinds: dict[str, Kind] = {}

    @property
    def groups(self) -> Mapping[Kind, Group]:
        return self._groups

    @property
    def num_workers(self) -> int:
        """That don't drain."""
        return len(self._kinds)

    @property
    def num_senders(self) -> int:
        """That don't drain, whether they accept or not."""
        return sum(len(group.members) for kind, group in self._groups.items() if not kind.decodes)

    def observe(self, events: Sequence[FleetEvent]) -> None:
        for event in events:
            if isinstance(event, ViewChanged):
                self._changed(event.view)
            elif isinstance(event, WorkerGone):
                self._gone(event.id)

    def place(
        self,
        snapshot: Snapshot,
        query: PlacementQuery,
        choose_sender: Callable[[list[Group]], str],
        choose_receiver: Callable[[list[Group]], str],
    ) -> Placement | None:
        """S from the prefill pool, R from the decode pool. Where one pool has nobody, a worker of the other runs the request
        alone; so it is where only that one is large enough, or none has its layout. Of a handover R must hold all, S the
        prompt. None: nobody accepts now, or no R has a free slot: what is placed beyond them would wait there with its
        blocks, between its first token and its second.

        `choose_sender` gets groups with senders in them, `choose_receiver` with receivers.
        """
        able = [kind for kind in self._groups if kind.takes(query, query.total_tokens)]
        receiving = [] if query.must_run_alone else [kind for kind in able if kind.decodes]
        needed = query.prompt_tokens + 1 if receiving else query.total_tokens
        sending = [kind for kind in self._groups if not kind.decodes and kind.takes(query, needed)]
        accepting = [group for kind in sending or able if (group := self._groups[kind]).senders]
        if not accepting:
            return None
        sender = self._preferred(query, sending + able) or choose_sender(accepting)
        kind = self._kinds[sender]
        peers = [self._groups[each] for each in receiving if each.layout == kind.layout]
        if kind.decodes or not peers:
            if kind in able:
                return Placement(sender=snapshot[sender])
            return self.place(snapshot, replace(query, must_run_alone=True), choose_sender, choose_receiver)
        peers = [group for group in peers if group.receivers]
        if not peers:
            return None
        return Placement(sender=snapshot[sender], receiver=snapshot[choose_receiver(peers)])

    def _preferred(self, query: PlacementQuery, kinds: Sequence[Kind]) -> str | None:
        for worker in query.prefer:
            kind = self._kinds.get(worker)
            if kind is not None and kind in kinds and worker in self._groups[kind].senders:
                return worker
        return None

    def _changed(self, view: WorkerView) -> None:
        kind = Kind.of(view)
        if view.draining or self._kinds.get(view.id, kind) != kind:
            self._gone(view.id)
        if view.draining:
            return
        self._kinds[view.id] = kind
        group = self._groups.get(kind)
        if group is None:
            group = self._groups[kind] = Group(kind)
        group.members.add(view.id)
        if view.accepts:
            group.senders.put(view.id, self._sender_key(view))
            group.full.remove(view.id)
        else:
            group.senders.remove(view.id)
            group.full.put(view.id, self._sender_key(view))
        if view.free_slots > 0:
            group.receivers.put(view.id, self._receiver_key(view))
            group.room.put(view.id, -view.free_tokens)
        else:
            group.receivers.remove(view.id)
            group.room.remove(view.id)

    def _gone(self, worker: str) -> None:
        kind = self._kinds.pop(worker, None)
        if kind is None:
            return
        group = self._groups[kind]
        group.members.discard(worker)
        for ranking in (group.senders, group.full, group.receivers, group.room):
            ranking.remove(worker)
        if not group.members:
            del self._groups[kind]
