"""AutoscalingPolicy: figures in, numbers of workers out. Pure: it waits for nothing and keeps nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rtp_llm.autoscaling.figures import ApplicationFigures, PoolFigures
from rtp_llm.config import Config, Pool

REACHABLE = 1.5  # times an idle worker's step: an ITL target below that isn't what the number of workers decides


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicySettings:
    """What the policy needs of a Config, as plain numbers: it travels to Serve's controller."""

    least: Mapping[str, int]  # by pool
    most: Mapping[str, int]
    queue_s: float  # that a prompt waits for its turn, at most
    utilization: float
    itl_s: float
    occupancy: float
    decode_per_prefill: float | None
    window_s: float
    interval_s: float

    @classmethod
    def of(cls, config: Config) -> PolicySettings:
        sizes = {pool.value: config.sizes_of(pool) for pool in Pool}
        prefill, decode = config.prefill.autoscaling, config.decode.autoscaling
        return cls(
            least={pool: each.least for pool, each in sizes.items()},
            most={pool: each.most for pool, each in sizes.items()},
            queue_s=prefill.queue_share * config.router.ttft_target_ms / 1000,
            utilization=prefill.utilization,
            itl_s=decode.itl_share * config.engine_of(Pool.DECODE).itl_target_ms / 1000,
            occupancy=decode.occupancy,
            decode_per_prefill=config.autoscaling.decode_per_prefill,
            window_s=config.autoscaling.window_s,
            interval_s=config.autoscaling.interval_s,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class AutoscalingPolicy:
    def __init__(self, settings: PolicySettings) -> None:
        self._settings = settings

    def desired(self, figures: ApplicationFigures) -> dict[Pool, int]:
        """Workers of each pool, within its limits."""
        pools = figures.pools
        if not figures.routers:  # a router that was lost has said nothing: that is no idleness
            return {pool: self._bounded(pool, pools[pool].target) for pool in Pool}
        needs = {Pool.PREFILL: self._prefill(figures), Pool.DECODE: self._decode(figures)}
        if self._settings.decode_per_prefill is not None:
            needs = self._in_ratio(needs, self._settings.decode_per_prefill)
        for pool in Pool:
            if pools[pool].workers == 0:  # who starts isn't given up before it has run
                needs[pool] = max(needs[pool], pools[pool].target)
        return {pool: self._bounded(pool, need) for pool, need in needs.items()}

    def _prefill(self, figures: ApplicationFigures) -> int:
        """So many that a prompt waits `queue_s` at most, and each computes `utilization` of the time at most."""
        here = _who_does(Pool.PREFILL, figures)
        waiting = not figures.pools[Pool.DECODE].full  # else for decode workers
        prompts = here.prompts + figures.waiting * waiting
        tokens = here.queued_tokens + figures.waiting_tokens * waiting
        if not (prompts or tokens or here.prompt_tokens_per_s):
            return 0
        token_s = figures.costs(Pool.PREFILL).token_s
        computing = here.prompt_tokens_per_s * token_s / self._settings.utilization
        return max(1, _whole(computing), _whole(self._to_wait(prompts, tokens * token_s)))

    def _to_wait(self, prompts: float, work_s: float) -> float:
        """The workers n with which the last of so many prompts waits `queue_s`: for those before it, but not for itself nor
        for those that others compute meanwhile. work_s / prompts * (prompts - n) / n = queue_s, for n."""
        if prompts <= 1:
            return 0.0
        return prompts * work_s / (prompts * self._settings.queue_s + work_s)

    def _decode(self, figures: ApplicationFigures) -> int:
        """So many that a step takes `itl_s` at most, and `occupancy` of slots and of KV is taken at most."""
        own, here, waiting = figures.pools[Pool.DECODE], _who_does(Pool.DECODE, figures), 0.0
        if own.full or not here.workers:
            waiting = figures.waiting
        if not (here.decode_tokens_per_s or waiting or own.sequences):
            return 0
        sequences, context = here.sequences + waiting, here.kv_tokens
        costs, occupancy = figures.costs(Pool.DECODE), self._settings.occupancy
        lengthened_s = costs.sequence_s * sequences + costs.context_s * context  # of a step, were it one worker's
        idle_s = costs.base_s + lengthened_s / max(sequences, 1.0)
        left_s = max(self._settings.itl_s, REACHABLE * idle_s) - costs.base_s
        parts = [lengthened_s / left_s if left_s > 0 else 0.0]
        if here.workers and here.slots and here.max_kv_tokens:
            parts.append(sequences / (occupancy * here.slots / here.workers))
            parts.append(context / (occupancy * here.max_kv_tokens / here.workers))
        return max(1, _whole(max(parts)))

    def _in_ratio(self, needs: Mapping[Pool, int], ratio: float) -> dict[Pool, int]:
        prefill = self._bounded(Pool.PREFILL, max(needs[Pool.PREFILL], _whole(needs[Pool.DECODE] / ratio)))
        return {Pool.PREFILL: prefill, Pool.DECODE: _whole(prefill * ratio)}

    def _bounded(self, pool: Pool, need: int) -> int:
        return max(self._settings.least[pool], min(need, self._settings.most[pool]))


def _who_does(pool: Pool, figures: ApplicationFigures) -> PoolFigures:
    """Where the pool's work is done: in the other one while it has no worker, and that is its demand."""
    own = figures.pools[pool]
    return own if own.workers else figures.pools[Pool.DECODE if pool == Pool.PREFILL else Pool.PREFILL]


def _whole(workers: float) -> int:
    """At least so many, but for an error of rounding."""
    return math.ceil(workers - 1e-9)
