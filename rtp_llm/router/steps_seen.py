"""StepsSeen: what the steps of each pool take, for autoscaling. Placement keeps its own, of each worker."""

from __future__ import annotations

from rtp_llm.autoscaling.figures import StepCosts
from rtp_llm.router.placement import StepMeasured
from rtp_llm.router.placement.step_cost import StepCost

EVERY_S = 0.05  # a step of each pool is looked at: a large fleet shows more of them, and no others
NEWEST = 0.02  # weight of the newest step in the mean length


class StepsSeen:
    def __init__(self) -> None:
        self._pools: dict[str, PoolSteps] = {}

    def observe(self, pool: str, measured: StepMeasured, now: float) -> None:
        self._pools.setdefault(pool, PoolSteps()).observe(measured, now)

    def costs(self) -> dict[str, float]:
        """RouterFigures' by name."""
        return {
            f"{pool}_{name}": value
            for pool, steps in self._pools.items()
            for name, value in steps.costs()._asdict().items()
        }


class PoolSteps:
    def __init__(self) -> None:
        self._cost = StepCost()
        self._pairs_per_row: float | None = None
        self._observed_at = float("-inf")

    def observe(self, measured: StepMeasured, now: float) -> None:
        if now - self._observed_at < EVERY_S:
            return
        self._observed_at = now
        self._cost.observe(measured.step, measured.seconds)
        if rows := measured.step.prefill_rows:
            newest, mean = measured.step.attention_pairs / rows, self._pairs_per_row
            self._pairs_per_row = newest if mean is None else mean + NEWEST * (newest - mean)

    def costs(self) -> StepCosts:
        cost = self._cost
        return StepCosts(
            token_s=cost.row_s + cost.pair_s * (self._pairs_per_row or 0.0),
            base_s=cost.base_s,
            sequence_s=cost.sequence_s,
            context_s=cost.context_s,
        )
