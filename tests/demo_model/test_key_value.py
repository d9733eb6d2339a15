"""One pair fills one block of 16 tokens, in every prompt of a key–value table."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from types import ModuleType

import pytest
from tokenizers import Tokenizer

Tool = Callable[[str], ModuleType]


@pytest.mark.parametrize("second_turn", [False, True])
def test_each_pair_fills_its_own_block_of_16_tokens(tool: Tool, tokenizer: Tokenizer, second_turn: bool):
    key_value, prompt_text = tool("key_value"), tool("chatml").prompt_text
    for seed in range(200):
        table = key_value.table(Random(seed))
        ids = tokenizer.encode(prompt_text(table.ask(0, second_turn=second_turn))).ids
        for index, (key, value) in enumerate(table.pairs):
            begin = key_value.LINE_TOKENS * (table.first_block + index)
            line = tokenizer.decode(ids[begin : begin + key_value.LINE_TOKENS])
            assert line == key_value.LINE.format(key=key, value=value)


def test_held_out_prompts_have_the_same_shape(tool: Tool, tokenizer: Tokenizer):
    key_value, prompt_text = tool("key_value"), tool("chatml").prompt_text
    for prompt in tool("data").held_out("key_value", 200):
        ids = tokenizer.encode(prompt_text(prompt.messages)).ids
        key, value = prompt.answer.removesuffix(".").removeprefix("The code of ").split(" is ")
        lines = [tokenizer.decode(ids[begin : begin + 16]) for begin in range(0, len(ids), 16)]
        assert key_value.LINE.format(key=key, value=value) in lines


def test_tables_have_different_keys_and_values_hard_to_guess(tool: Tool):
    key_value = tool("key_value")
    tables = [key_value.table(Random(seed)) for seed in range(50)]
    assert all(len({key for key, _ in table.pairs}) == key_value.MAX_PAIRS == 94 for table in tables)
    assert len({value for table in tables for _, value in table.pairs}) > 850


def test_the_question_comes_after_the_table(tool: Tool):
    table = tool("key_value").table(Random(1), 5)
    at_once, later = table.ask(3), table.ask(3, second_turn=True)
    assert at_once[-1]["content"].startswith(table.text)
    assert at_once[-1]["content"].endswith(f"What is the code of {table.pairs[3][0]}?")
    assert [m["role"] for m in later[-3:]] == ["user", "assistant", "user"]
    assert later[-3]["content"] == table.text
    assert table.answer(3) == "The code of {} is {}.".format(*table.pairs[3])


def test_training_tables_have_no_held_out_pair(tool: Tool):
    key_value = tool("key_value")
    for seed in range(50):
        drawn = key_value.training_table(Random(seed), 60).pairs
        assert not [pair for pair in drawn if key_value.is_held_out_pair(*pair)]
