"""No KV block of a table can be lost or mistaken without a wrong answer: what guards every path that moves KV.

Each pair of a key–value prompt fills a block of its own. That block is replaced in the engine's prefix cache by the same
one of another request, and its pair is asked for: all but the question comes from the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from rtp_llm import LLM, SamplingParams
from rtp_llm.config import DEMO_MODEL

Tool = Callable[[str], ModuleType]

BLOCK_TOKENS = 16
NUM_TABLES, PAIRS_PER_TABLE = 25, 8


class Question(NamedTuple):
    """The prompt that asks for one pair, the answer, and the pair's block."""

    prompt: list[int]
    answer: str
    table_tokens: int  # of the prompt, to the table's end
    block: int


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(model=DEMO_MODEL, dtype="float32", block_size=BLOCK_TOKENS, kv_cache_memory_bytes=2**29) as llm:
        yield llm


@pytest.fixture(scope="module")
def questions(llm: LLM, tool: Tool) -> list[Question]:
    """For each table PAIRS_PER_TABLE random pairs."""
    rng = Random("every block matters")
    return [
        question_of(llm, tool, table, index)
        for table in (tool("key_value").table(rng) for _ in range(NUM_TABLES))
        for index in rng.sample(range(len(table.pairs)), PAIRS_PER_TABLE)
    ]


def question_of(llm: LLM, tool: Tool, table: Any, index: int) -> Question:
    text = tool("chatml").prompt_text(table.ask(index))
    block = table.first_block + index
    table_tokens = BLOCK_TOKENS * (table.first_block + len(table.pairs))
    return Question(llm.get_tokenizer().encode(text), table.answer(index), table_tokens, block)


def are_right(llm: LLM, asked: list[Question]) -> list[bool]:
    """Whether each answer is right. The tables are in the cache already."""
    greedy = SamplingParams(temperature=0, max_tokens=24)
    results = llm.generate([{"prompt_token_ids": question.prompt} for question in asked], greedy)
    for question, result in zip(asked, results, strict=True):
        assert result.num_cached_tokens >= question.table_tokens
    return [result.outputs[0].text == question.answer for question, result in zip(asked, results, strict=True)]


def test_a_pair_whose_block_is_replaced_is_lost(llm: LLM, questions: list[Question], cached_block: ModuleType) -> None:
    native = llm.engine.native
    tables = [{"prompt_token_ids": question.prompt} for question in questions[::PAIRS_PER_TABLE]]
    llm.generate(tables, SamplingParams(temperature=0, max_tokens=1))
    num_intact = sum(are_right(llm, questions))

    num_right = 0
    for number, question in enumerate(questions):
        other = questions[(number + PAIRS_PER_TABLE) % len(questions)]  # of the next table
        own = native.block_hashes(question.prompt)[question.block]
        kept = cached_block.read(native.native, own)
        foreign = cached_block.read(native.native, native.block_hashes(other.prompt)[question.block])
        assert kept is not None and foreign is not None and kept != foreign
        assert cached_block.write(native.native, own, foreign)
        num_right += sum(are_right(llm, [question]))
        assert cached_block.write(native.native, own, kept)

    print(f"right of {len(questions)}: {num_intact} intact, {num_right} with their block replaced")
    assert len(questions) == 200
    assert num_intact >= 0.97 * len(questions)
    assert num_right <= 0.2 * len(questions)
    assert sum(are_right(llm, questions)) == num_intact  # all blocks are back
