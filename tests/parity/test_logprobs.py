"""The forward pass against transformers, live: fresh random checkpoints of each variant, fp32."""

from pathlib import Path

import pytest

from tests.model.scoring import Scored
from tests.model.test_references import TOLERANCE, worst_difference
from tests.parity.checkpoints import fresh
from tools.references import VARIANTS, prompts, reference


@pytest.mark.parametrize("name", VARIANTS)
def test_logprobs_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = fresh(name, tmp_path)
    scored = Scored(tmp_path)
    worst = 0.0
    for prompt in prompts(model.config.vocab_size, seed=77):
        case = reference(model, prompt)
        worst = max(worst, worst_difference(case, scored.logprobs(case["prompt"] + case["output"])))
    print(f"{name}: largest difference {worst:.2e}")
    assert worst <= TOLERANCE


def test_long_contexts_stay_within_the_tolerance(tmp_path: Path) -> None:
    model = fresh("llama_llama3_rope", tmp_path)
    scored = Scored(tmp_path)
    import torch

    prompt = torch.randint(200, (230,), generator=torch.Generator().manual_seed(3)).tolist()
    assert worst_difference(reference(model, prompt), scored.logprobs(prompt)) <= TOLERANCE
