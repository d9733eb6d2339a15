"""Figures: what workers and routers record of themselves, and what the policy reads of a pool, taken over a window of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import NamedTuple, TypeVar

from rtp_llm.config import Pool

FULL = 0.95  # of slots or KV: nothing more is handed over to a worker that is so full

RecordedT = TypeVar("RecordedT", bound="_Recorded")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Recorded:
    """All are numbers, so that Serve carries them by name."""

    def recorded(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def read(cls: type[RecordedT], values: Mapping[str, float]) -> RecordedT | None:
        """What `recorded` gave; None: something is missing."""
        names = [each.name for each in fields(cls)]
        return cls(**{name: values[name] for name in names}) if all(name in values for name in names) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerFigures(_Recorded):
    """Of one worker, now; what ends in `_computed` since it started."""

    queued_tokens: float = 0.0  # of prompts, not computed yet
    waiting: float = 0.0  # sequences without a slot
    running: float = 0.0  # with one
    max_num_seqs: float = 1.0  # slots
    kv_tokens: float = 0.0  # that sequences hold
    max_kv_tokens: float = 1.0  # that the KV pool holds
    prompt_tokens_computed: float = 0.0
    decode_tokens_computed: float = 0.0

    @property
    def sequences(self) -> float:
        return self.waiting + self.running

    @property
    def prompts(self) -> float:
        """Not computed yet: those that wait, and one that is being computed."""
        return self.waiting + (1.0 if self.running and self.queued_tokens else 0.0)

    @property
    def is_full(self) -> bool:
        return self.sequences >= FULL * self.max_num_seqs or self.kv_tokens >= FULL * self.max_kv_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterFigures(_Recorded):
    """Of one router, now: what waits there for a worker, and what it has seen steps take, by pool (0: none was seen)."""

    waiting: float = 0.0
    waiting_tokens: float = 0.0  # prompt tokens of those
    prefill_token_s: float = 0.0
    prefill_base_s: float = 0.0
    prefill_sequence_s: float = 0.0
    prefill_context_s: float = 0.0
    decode_token_s: float = 0.0
    decode_base_s: float = 0.0
    decode_sequence_s: float = 0.0
    decode_context_s: float = 0.0

    def costs(self, pool: Pool) -> StepCosts:
        """Of the pool's steps; what none of them has shown yet is the other's."""
        own, other = (self._costs(each) for each in (pool, Pool.DECODE if pool == Pool.PREFILL else Pool.PREFILL))
        return StepCosts(*(mine or theirs for mine, theirs in zip(own, other, strict=True)))

    def _costs(self, pool: Pool) -> StepCosts:
        return StepCosts(*(getattr(self, f"{pool}_{name}") for name in StepCosts._fields))


class StepCosts(NamedTuple):
    """Seconds; router/placement/step_cost.py."""

    token_s: float = 0.0  # of a prompt token, its attention at the usual length included
    base_s: float = 0.0  # of a decode step,
    sequence_s: float = 0.0  # for each sequence in it,
    context_s: float = 0.0  # and for each token of their contexts


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolFigures:
    """Sums over the pool's workers of means over the window; `full` is so now."""

    workers: int = 0  # that run
    target: int = 0  # that were asked for
    queued_tokens: float = 0.0
    prompts: float = 0.0  # not computed yet
    sequences: float = 0.0
    slots: float = 0.0
    kv_tokens: float = 0.0
    max_kv_tokens: float = 0.0
    prompt_tokens_per_s: float = 0.0  # computed
    decode_tokens_per_s: float = 0.0
    full: bool = False  # nothing more is handed over to it

    @classmethod
    def of(cls, workers: Iterable[Window], *, running: int, target: int) -> PoolFigures:
        windows = list(workers)
        latest = [each.latest for each in windows]
        return cls(
            workers=running,
            target=target,
            queued_tokens=sum(each.mean("queued_tokens") for each in windows),
            prompts=sum(each.mean("prompts") for each in windows),
            sequences=sum(each.mean("sequences") for each in windows),
            slots=sum(each.max_num_seqs for each in latest),
            kv_tokens=sum(each.mean("kv_tokens") for each in windows),
            max_kv_tokens=sum(each.max_kv_tokens for each in latest),
            prompt_tokens_per_s=sum(each.rate("prompt_tokens_computed") for each in windows),
            decode_tokens_per_s=sum(each.rate("decode_tokens_computed") for each in windows),
            full=bool(latest) and all(each.is_full for each in latest),
        )


class Window:
    """One worker's figures over the last `seconds`. What it costs doesn't grow with them: a controller has many workers."""

    AVERAGED = ("queued_tokens", "prompts", "sequences", "kv_tokens")

    def __init__(self, seconds: float, at: float, figures: WorkerFigures) -> None:
        self._seconds = seconds
        self._samples: deque[tuple[float, WorkerFigures]] = deque()
        self._sums = dict.fromkeys(self.AVERAGED, 0.0)
        self._add(at, figures)

    def put(self, at: float, figures: WorkerFigures) -> None:
        """Nothing if it isn't later than the last one."""
        if at <= self._samples[-1][0]:
            return
        self._add(at, figures)
        while self._samples[0][0] < at - self._seconds:
            _, oldest = self._samples.popleft()
            for name in self._sums:
                self._sums[name] -= getattr(oldest, name)

    @property
    def latest(self) -> WorkerFigures:
        return self._samples[-1][1]

    def mean(self, name: str) -> float:
        return self._sums[name] / len(self._samples)

    def rate(self, counted: str) -> float:
        """A second, of what is counted."""
        (begin, first), (end, last) = self._samples[0], self._samples[-1]
        return float(getattr(last, counted) - getattr(first, counted)) / (end - begin) if end > begin else 0.0

    def _add(self, at: float, figures: WorkerFigures) -> None:
        self._samples.append((at, figures))
        for name in self._sums:
            self._sums[name] += getattr(figures, name)


@dataclass(frozen=True, kw_only=True, slots=True)
class ApplicationFigures:
    pools: Mapping[Pool, PoolFigures] = field(default_factory=lambda: {pool: PoolFigures() for pool in Pool})
    routers: Sequence[RouterFigures] = ()  # empty: none has said anything yet

    @property
    def waiting(self) -> float:
        """Requests, at all routers."""
        return sum(each.waiting for each in self.routers)

    @property
    def waiting_tokens(self) -> float:
        return sum(each.waiting_tokens for each in self.routers)

    def costs(self, pool: Pool) -> StepCosts:
        """The mean of what routers have seen."""
        seen = [costs for each in self.routers if any(costs := each.costs(pool))]
        return StepCosts(*(sum(column) / len(seen) for column in zip(*seen, strict=True))) if seen else StepCosts()
