"""Goal: what counts as good, and how much of it there was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rtp_llm.router.placement.step_cost import Step, StepCost
from rtp_llm.simulation.request import SimulatedRequest


@dataclass(frozen=True, kw_only=True)
class Goal:
    """TTFT and ITL at most so many times what an idle worker takes for a prompt of that length."""

    cost: StepCost
    ttft_times: float = 3.0
    itl_times: float = 2.0

    def targets(self, request: SimulatedRequest) -> tuple[float, float]:
        """Seconds of TTFT and of ITL."""
        tokens = request.prompt_tokens
        ttft = self.cost.seconds(Step.of_prompt(tokens))
        itl = self.cost.seconds(Step(decode_rows=1, context_tokens=tokens + request.output_tokens // 2))
        return self.ttft_times * ttft, self.itl_times * itl

    def is_met(self, request: SimulatedRequest) -> bool:
        ttft, itl = self.targets(request)
        return request.is_finished and request.ttft <= ttft and request.itl <= itl

    def goodput(self, requests: Sequence[SimulatedRequest]) -> float:
        """The part of `requests` that met it."""
        return sum(map(self.is_met, requests)) / len(requests)
