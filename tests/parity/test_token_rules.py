"""What requests ask of single tokens against transformers' own LogitsProcessors, live and in float32."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from rtp_llm import LLM, SamplingParams
from tests.model.test_references import CLEAR_GAP
from tests.parity.checkpoints import fresh
from tools.references import VARIANTS, prompts

NEW_TOKENS = 24


@pytest.mark.parametrize("name", list(VARIANTS)[:2])
def test_greedy_tokens_are_those_that_transformers_processors_leave_highest(name: str, tmp_path: Path) -> None:
    model = fresh(name, tmp_path)
    vocab = model.config.vocab_size
    bias = {token: float(token % 9 - 4) for token in range(0, vocab, 5)}
    allowed = [token for token in range(vocab) if token % 3]
    penalty = RepetitionPenaltyLogitsProcessor(1.4)
    biased = SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()})
    barred = SuppressTokensLogitsProcessor([token for token in range(vocab) if token % 3 == 0])
    asked = [
        (SamplingParams(repetition_penalty=1.4), LogitsProcessorList([penalty])),
        (SamplingParams(logit_bias=bias), LogitsProcessorList([biased])),
        (SamplingParams(allowed_token_ids=allowed), LogitsProcessorList([barred])),
        (
            SamplingParams(allowed_token_ids=allowed, logit_bias=bias, repetition_penalty=1.4),
            LogitsProcessorList([barred, biased, penalty]),
        ),
    ]
    llm = LLM(model=str(tmp_path), dtype="float32", skip_tokenizer_init=True)
    batch = prompts(vocab, seed=5)
    clear = 0
    for params, processors in asked:
        params = replace(params, temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
        outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in batch], params)
        for prompt, output in zip(batch, outputs, strict=True):
            tokens = list(output.outputs[0].token_ids)
            with torch.no_grad():
                rows = model(torch.tensor([prompt + tokens])).logits[0].float()
            for at, token in enumerate(tokens, start=len(prompt)):
                scores = processors(torch.tensor([(prompt + tokens)[:at]]), rows[at - 1 : at].clone())[0]
                top = scores.topk(2)
                if float(top.values[0] - top.values[1]) > CLEAR_GAP:
                    clear += 1
                    assert token == int(top.indices[0])
    assert clear > NEW_TOKENS * len(batch)  # of four times as many
