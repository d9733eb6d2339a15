"""The whole engine against transformers, live: greedy tokens and reported logprobs, many prompts in one batch."""

from pathlib import Path

import pytest
from transformers import PreTrainedModel

from rtp_llm import LLM, SamplingParams
from tests.model.test_references import CLEAR_GAP, TOLERANCE
from tests.parity.checkpoints import fresh
from tools.references import VARIANTS, logprobs_of, prompts

NEW_TOKENS = 16


def generate(directory: Path, batch: list[list[int]]) -> list[tuple[list[int], list[float]]]:
    """(tokens, their logprobs) of each prompt."""
    llm = LLM(model=str(directory), dtype="float32", skip_tokenizer_init=True)
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0, logprobs=0)
    answers = [output.outputs[0] for output in llm.generate([{"prompt_token_ids": prompt} for prompt in batch], params)]
    return [
        (
            list(answer.token_ids),
            [at[token].logprob for at, token in zip(answer.logprobs, answer.token_ids, strict=True)],
        )
        for answer in answers
    ]


def compare(model: PreTrainedModel, prompt: list[int], tokens: list[int], logprobs: list[float]) -> float:
    """Teacher-forced on the engine's own tokens. Returns the largest difference; asserts greedy choice."""
    assert len(tokens) == NEW_TOKENS
    rows = logprobs_of(model, prompt + tokens)[len(prompt) - 1 : -1]
    worst = 0.0
    for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
        top = row.topk(2)
        if float(top.values[0] - top.values[1]) > CLEAR_GAP:
            assert token == int(top.indices[0])
        worst = max(worst, abs(float(row[token]) - logprob))
    return worst


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_tokens_and_logprobs_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = fresh(name, tmp_path)
    batch = prompts(model.config.vocab_size, seed=5) + prompts(model.config.vocab_size, seed=6)
    worst = max(
        compare(model, prompt, tokens, logprobs)
        for prompt, (tokens, logprobs) in zip(batch, generate(tmp_path, batch), strict=True)
    )
    print(f"{name}: largest difference {worst:.2e}")
    assert worst <= TOLERANCE
