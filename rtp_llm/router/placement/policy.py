"""Policy: where a request runs, decided over what the router knows of the fleet.

A policy is told of each change as it comes (`observe`) and keeps what it needs in an order of its own, so that a decision
(`choose`) looks at a few workers and not at all of them. It never waits. One event loop.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

from rtp_llm.config import Pool
from rtp_llm.router.placement.step_cost import Step

PREFILL = Pool.PREFILL.value
DECODE = Pool.DECODE.value


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerView:
    """One live worker: its last `Load`, plus what this router has placed there and not heard back. A change makes a new one."""

    id: str
    epoch: int
    pool: str
    queued_tokens: int = 0  # prompt tokens that wait there, unacknowledged submits included
    load_at: float = 0.0  # when its last Load came, by the clock of PlacementQuery.now
    max_queued_tokens: int = 1
    running: int = 0  # sequences, unacknowledged submits included
    sequences: int = 0  # that run there or will, prompts that are handed on not counted
    context_tokens: int = 0  # KV that these read in a decode step, or will
    free_blocks: int = 0  # of the KV pool, cached ones included
    block_tokens: int = 1
    max_model_len: int = 0  # tokens of the longest request that its context and its pool hold; 0: not known
    layout: str = ""  # fingerprint: KV goes between equal ones only
    free_slots: int = 1  # sequences that could begin to run there, less what this router has placed there
    numerics_id: str = ""
    draining: bool = False
    protocol: int = 1  # version that it and this router speak

    @property
    def accepts(self) -> bool:
        return not self.draining and self.queued_tokens < self.max_queued_tokens

    @property
    def free_tokens(self) -> int:
        return self.free_blocks * self.block_tokens

    def holds(self, tokens: int) -> bool:
        """Whether a request of so many tokens, prompt and answer, can ever run there."""
        return self.max_model_len == 0 or tokens <= self.max_model_len


Snapshot: TypeAlias = Mapping[str, WorkerView]  # by worker id: all that are live


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """S sends to R, or (receiver None) S runs the request alone."""

    sender: WorkerView
    receiver: WorkerView | None = None
    tokens_sent: int | None = None  # whose KV R lacks; None: the policy doesn't know, and the handover isn't measured


@dataclass(frozen=True, kw_only=True)
class PlacementQuery:
    """What a policy knows of the request."""

    prompt_tokens: int
    total_tokens: int = 0  # with the answer at its longest
    must_run_alone: bool = False  # after two Released, or a request that ends with its first token
    block_hashes: Callable[[int], bytes] | None = None  # of blocks of so many tokens: PromptHashes; None: not known
    prefer: Sequence[str] = field(default=())  # worker ids whose cache holds the prompt (a retry)
    now: float = 0.0  # the router's clock
    waited_s: float = 0.0  # since the request came
    protocol: int = 1  # version that says all that is asked for: workers of older ones would answer something else
    session: str = ""  # of requests that had better go to the same workers; empty: of none
    tokens_ahead: int = 0  # of prompts that wait in the router and go first, for a prediction
    ttft_target_s: float | None = None  # None: the policy's own
    itl_target_s: float | None = None
    random: random.Random = field(default_factory=random.Random)


@dataclass(frozen=True, slots=True)
class ViewChanged:
    """A worker came, or what placement reads of it is another now."""

    view: WorkerView


@dataclass(frozen=True, slots=True)
class WorkerGone:
    """Nothing can be placed there any more; a later ViewChanged brings it back."""

    id: str


@dataclass(frozen=True, slots=True)
class StepMeasured:
    """A step of the worker took so long."""

    id: str
    step: Step
    seconds: float


@dataclass(frozen=True, slots=True)
class HandoverMeasured:
    """A handover whose placement had `tokens_sent`: so long after the first token all KV was at the receiver."""

    sender: str
    receiver: str
    tokens_sent: int
    seconds: float
    at: float  # by the clock of PlacementQuery.now


@dataclass(frozen=True, slots=True)
class CacheReset:
    """All that lies in the worker's prefix cache now: block hashes of 16 bytes, one after the other, in no order."""

    id: str
    hashes: bytes


@dataclass(frozen=True, slots=True)
class CacheChanged:
    """What has happened to the worker's prefix cache since: events of 17 bytes, in order, each a kind (1 stored, 2 evicted,
    3 all cleared) and a block hash."""

    id: str
    events: bytes


FleetEvent: TypeAlias = ViewChanged | WorkerGone | StepMeasured | HandoverMeasured | CacheReset | CacheChanged


class Policy(Protocol):
    """Made by name: `router.policy`, one of the package's own or an entry point of the group `rtp_llm.policies`.

    One with an attribute `watches_caches` that is true also observes CacheReset and CacheChanged.
    """

    def observe(self, events: Sequence[FleetEvent]) -> None:
        """What has happened, in order. Every view in a snapshot was in a ViewChanged before."""
        ...

    def choose(self, snapshot: Snapshot, query: PlacementQuery) -> Placement | None:
        """None: nobody takes it now. Whatever else is chosen is carried out."""
        ...


class Prediction(NamedTuple):
    ttft_s: float  # from now, behind all that goes first
    idle_ttft_s: float  # if nothing else were to do


@runtime_checkable
class Predictor(Protocol):
    """A policy that can tell when a request's first token would come."""

    def predicted(self, snapshot: Snapshot, query: PlacementQuery) -> Prediction | None:
        """At the earliest. None: nobody knows."""
        ...


@runtime_checkable
class ScoringPolicy(Policy, Protocol):
    """A policy that can say how good a placement is, so that others can be weighed against it (mixture.py)."""

    def proposals(self, snapshot: Snapshot, query: PlacementQuery) -> Sequence[Placement] | None:
        """The few that it would choose among. None: nothing is to be placed now."""
        ...

    def scores(self, placements: Sequence[Placement], query: PlacementQuery) -> list[float]:
        """What each costs, whoever proposed it: 0 nothing, 1 as much as may be."""
        ...

    def placed(self, placement: Placement, query: PlacementQuery) -> None:
        """It was chosen, and is carried out."""
        ...


def watches_caches(policy: Policy) -> bool:
    return bool(getattr(policy, "watches_caches", False))
