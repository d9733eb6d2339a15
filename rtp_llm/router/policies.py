"""Placement policies: pure functions over a snapshot of the fleet, registered by name.

A policy sees the workers that may take the request now and answers where it runs: S prefills and sends, R decodes; or one
worker alone. It never waits and keeps no state but what it is given.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from rtp_llm.config import Pool
from rtp_llm.errors import ConfigError

PREFILL = Pool.PREFILL.value
DECODE = Pool.DECODE.value


@dataclass(frozen=True, kw_only=True)
class WorkerView:
    """One live worker: its last `Load`, plus what this router has placed there and not heard back."""

    id: str
    epoch: int
    pool: str
    queued_tokens: int = 0  # prompt tokens that wait there, unacknowledged submits included
    max_queued_tokens: int = 1
    running: int = 0  # sequences, unacknowledged submits included
    free_blocks: int = 0  # of the KV pool, cached ones included
    block_tokens: int = 1
    max_model_len: int = 0  # tokens of the longest request that its context and its pool hold; 0: not known
    layout: str = ""  # fingerprint: KV goes between equal ones only
    free_slots: int = 1  # sequences that could begin to run there, less what this router has placed there
    numerics_id: str = ""
    draining: bool = False

    @property
    def accepts(self) -> bool:
        return not self.draining and self.queued_tokens < self.max_queued_tokens

    def holds(self, tokens: int) -> bool:
        """Whether a request of so many tokens, prompt and answer, can ever run there."""
        return self.max_model_len == 0 or tokens <= self.max_model_len


@dataclass(frozen=True, kw_only=True)
class Placement:
    """S sends to R, or (receiver None) S runs the request alone."""

    sender: WorkerView
    receiver: WorkerView | None = None


@dataclass(frozen=True, kw_only=True)
class PlacementQuery:
    """What a policy knows of the request."""

    prompt_tokens: int
    total_tokens: int = 0  # with the answer at its longest
    must_run_alone: bool = False  # after two Released, or a request that ends with its first token
    prefer: Sequence[str] = field(default=())  # worker ids whose cache holds the prompt (a retry)
    sender_turn: int = 0  # counts this router's placements, for round-robin
    receiver_turn: int = 0  # counts those with a receiver
    random: random.Random = field(default_factory=random.Random)


Policy = Callable[[Sequence[WorkerView], PlacementQuery], Placement | None]


def least_loaded(workers: Sequence[WorkerView], query: PlacementQuery) -> Placement | None:
    """The prefill worker with the fewest queued tokens, the decode worker with the fewest sequences (one with a free slot; one
    that has room for the prompt, if any has), at random among those within 10% of the best (routers that see one snapshot must
    not herd)."""

    def sender(candidates: list[WorkerView]) -> WorkerView:
        return _near_best(candidates, lambda w: w.queued_tokens, query)

    def receiver(candidates: list[WorkerView]) -> WorkerView:
        roomy = [w for w in candidates if w.free_blocks * w.block_tokens > query.prompt_tokens]
        return _near_best(roomy or candidates, lambda w: w.running, query)

    return _place(workers, query, sender, receiver)


def round_robin(workers: Sequence[WorkerView], query: PlacementQuery) -> Placement | None:
    """Each pool in turn, in order of worker id, decode workers without a free slot passed over. After a round of pairs (the
    least common multiple of the pools' sizes) the receivers shift by one, so that in time every sender meets every
    receiver."""
    num_senders = sum(w.pool != DECODE and not w.draining for w in workers)

    def sender(candidates: list[WorkerView]) -> WorkerView:
        return _in_turn(candidates, query.sender_turn)

    def receiver(candidates: list[WorkerView]) -> WorkerView:
        shift = query.receiver_turn // math.lcm(num_senders, len(candidates))
        return _in_turn(candidates, query.receiver_turn + shift)

    return _place(workers, query, sender, receiver)


POLICIES: dict[str, Policy] = {"least_loaded": least_loaded, "round_robin": round_robin}


def policy_named(name: str) -> Policy:
    """
    Raises:
        ConfigError: router.policy names none.
    """
    if name not in POLICIES:
        raise ConfigError(f"router.policy: {name!r} is unknown, there are {', '.join(sorted(POLICIES))}")
    return POLICIES[name]


def _place(
    workers: Sequence[WorkerView],
    query: PlacementQuery,
    choose_sender: Callable[[list[WorkerView]], WorkerView],
    choose_receiver: Callable[[list[WorkerView]], WorkerView],
) -> Placement | None:
    """S from the prefill pool, R from the decode pool. Where one pool has nobody, a worker of the other runs the request
    alone; so it is where only that one is large enough, or none has its layout. Of a handover R must hold all, S the prompt.
    None: nobody accepts now, or no R has a free slot: what is placed beyond them would wait there with its blocks, between
    its first token and its second."""
    there = [w for w in workers if not w.draining]
    able = [w for w in there if w.holds(query.total_tokens)]
    receivers = [] if query.must_run_alone else [w for w in able if w.pool == DECODE]
    needed = query.prompt_tokens + 1 if receivers else query.total_tokens
    senders = [w for w in there if w.pool != DECODE and w.holds(needed)]
    candidates = [w for w in (senders or able) if w.accepts]
    if not candidates:
        return None
    preferred = [w for w in there if w.id in query.prefer and w.accepts and (w in senders or w in able)]
    sender = choose_sender(preferred or candidates)
    receivers = [w for w in receivers if w.layout == sender.layout]
    if sender.pool == DECODE or not receivers:
        if sender in able:
            return Placement(sender=sender)
        return _place(workers, replace(query, must_run_alone=True), choose_sender, choose_receiver)
    receivers = [w for w in receivers if w.free_slots > 0]
    if not receivers:
        return None
    return Placement(sender=sender, receiver=choose_receiver(receivers))


def _in_turn(candidates: list[WorkerView], turn: int) -> WorkerView:
    ordered = sorted(candidates, key=lambda w: w.id)
    return ordered[turn % len(ordered)]


def _near_best(candidates: list[WorkerView], load: Callable[[WorkerView], int], query: PlacementQuery) -> WorkerView:
    best = min(load(w) for w in candidates)
    return query.random.choice([w for w in candidates if load(w) <= best * 1.1])
