"""The engine against what transformers computed (tests/references; tools/references.py makes them), in fp32.

Promised: teacher-forced on the reference's tokens, logprobs within 1e-3 and the same argmax wherever the reference's
highest two are more than 2e-3 apart.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.model.scoring import Scored

REFERENCES = Path(__file__).resolve().parents[1] / "references"
VARIANTS = sorted(path.parent.name for path in REFERENCES.glob("*/reference.json"))
TOLERANCE = 1e-3
CLEAR_GAP = 2e-3


def cases(variant: str) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads((REFERENCES / variant / "reference.json").read_text())["cases"]
    return loaded


def worst_difference(case: dict[str, Any], logprobs: list[list[float]]) -> float:
    """Largest difference of any reported logprob; asserts the argmax."""
    tokens = case["prompt"] + case["output"]
    worst = 0.0
    for i, row in enumerate(logprobs):
        top = case["top_logprobs"][i]
        if top[0] - top[1] > CLEAR_GAP:
            assert max(range(len(row)), key=row.__getitem__) == case["top_tokens"][i][0], f"argmax at position {i}"
        pairs = list(zip(case["top_tokens"][i], top, strict=True))
        if i + 1 < len(tokens):
            pairs.append((tokens[i + 1], case["logprobs"][i]))
        worst = max(worst, *(abs(row[token] - value) for token, value in pairs))
    return worst


def test_both_families_have_references() -> None:
    assert {variant.split("_")[0] for variant in VARIANTS} == {"llama", "qwen3"}
    assert len(VARIANTS) >= 7


@pytest.mark.parametrize("variant", VARIANTS)
def test_logprobs_are_those_of_transformers(variant: str) -> None:
    scored = Scored(REFERENCES / variant)
    worst = max(worst_difference(case, scored.logprobs(case["prompt"] + case["output"])) for case in cases(variant))
    print(f"{variant}: largest difference {worst:.2e}")
    assert worst <= TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_chunks_and_block_sizes_give_the_same_bits(variant: str, dtype: str) -> None:
    case = cases(variant)[-1]
    tokens = case["prompt"] + case["output"]
    whole = Scored(REFERENCES / variant, dtype=dtype, chunk_tokens=256, block_tokens=16).logits(tokens)
    for chunk_tokens, block_tokens in ((1, 16), (7, 8), (64, 64)):
        scored = Scored(REFERENCES / variant, dtype=dtype, chunk_tokens=chunk_tokens, block_tokens=block_tokens)
        assert scored.logits(tokens) == whole


@pytest.mark.parametrize("variant", VARIANTS)
def test_bf16_stays_near_the_reference(variant: str) -> None:
    scored = Scored(REFERENCES / variant, dtype="bfloat16")
    differences = [
        abs(row[token] - value)
        for case in cases(variant)
        for row, token, value in zip(
            scored.logprobs(case["prompt"] + case["output"])[:-1],
            (case["prompt"] + case["output"])[1:],
            case["logprobs"],
            strict=True,
        )
    ]
    mean = sum(differences) / len(differences)
    print(f"{variant}: mean difference in bfloat16 {mean:.3f}")
    assert mean < 0.2
