"""StepsSeen: what autoscaling is told of the steps that Loads bring."""

import pytest

from rtp_llm.router.placement import StepMeasured
from rtp_llm.router.placement.step_cost import Step, StepCost
from rtp_llm.router.steps_seen import EVERY_S, StepsSeen

COST = StepCost(base_s=0.004, sequence_s=1e-4, context_s=1e-7, row_s=1e-4, pair_s=1e-7)


def test_each_pools_steps_are_learned_by_themselves() -> None:
    seen = StepsSeen()
    assert seen.costs() == {}
    for number in range(400):
        prompt = Step.of_prompt(1000 if number % 2 else 500)
        decode = Step(decode_rows=1 + number % 30, context_tokens=1000 * (number % 17))
        for pool, step in (("prefill", prompt), ("decode", decode)):
            seen.observe(pool, StepMeasured("w", step, COST.seconds(step)), number * EVERY_S * 1.01)
    costs = seen.costs()
    pairs = (1001 + 501) / 4  # a row, over prompts; rows of long ones are more
    assert costs["prefill_token_s"] == pytest.approx(COST.row_s + COST.pair_s * pairs, rel=0.1)
    assert (costs["decode_base_s"], costs["decode_sequence_s"]) == pytest.approx(
        (COST.base_s, COST.sequence_s), rel=0.05
    )
    assert costs["prefill_base_s"] == costs["decode_token_s"] == 0


def test_a_large_fleets_steps_are_looked_at_now_and_then() -> None:
    seen = StepsSeen()
    known = []
    for at in (0.0, EVERY_S / 3, EVERY_S / 2, EVERY_S):
        seen.observe("prefill", StepMeasured("w", Step.of_prompt(100), 0.1 + at), at)
        known.append(seen.costs())
    assert known[0] == known[1] == known[2] != known[3]
