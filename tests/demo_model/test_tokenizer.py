"""A tokenizer trained here, and the fast encoder beside it."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from types import ModuleType

import pytest
from tokenizers import Tokenizer

Tool = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def trained(tool: Tool) -> Tokenizer:
    return tool("tokenizer").train(0, num_documents=600)


def test_lines_of_tables_have_16_tokens(tool: Tool, trained: Tokenizer):
    key_value = tool("key_value")
    lengths = {len(trained.encode(key_value.LINE.format(key=key, value=417)).ids) for key in key_value.KEYS}
    assert lengths == {key_value.LINE_TOKENS}


def test_a_tokenizer_that_splits_a_key_is_refused(tool: Tool):
    with pytest.raises(ValueError, match="no single tokens"):
        tool("tokenizer").train(0, num_documents=10)


def test_encoder_equals_the_tokenizer(tool: Tool, trained: Tokenizer):
    encoder = tool("encoder").Encoder(trained)
    rng = Random(4)
    texts = [
        "I'm Zoë; 李雷 says “hi” 🙂",
        "  two  spaces\n\n\ttab \r\n ",
        "a<b <think>\n\n</think>\n\n<|im_end|>.",
        "x's \n y",
    ]
    for size in (400, 1500, 6000) * 20:
        texts += [segment.text for segment in tool("data").training_document(rng, size)]
    for text in texts:
        assert encoder.encode(text) == trained.encode(text).ids, text


def test_batches_hold_targets_where_the_assistant_speaks(tool: Tool, trained: Tokenizer):
    batches, encoder = tool("batches"), tool("encoder").Encoder(trained)
    plan = batches.BatchPlan("", seed=0, tokens_per_batch=4096)
    for step in range(20):
        tokens, labels = batches.make_batch(encoder, plan, step)
        assert tokens.shape == labels.shape and tokens.size >= 2048
        assert 0.02 < (labels != batches.IGNORED).mean() < 0.7
        assert ((labels == tokens) | (labels == batches.IGNORED)).all()
        assert (tokens != encoder.padding).mean() > 0.6
