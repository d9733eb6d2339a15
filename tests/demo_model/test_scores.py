"""The shipped model answers held-out prompts of every skill: through the engine, and prefilled here and decoded there.

A sample of what `tools/demo_model/evaluate.py` measures; the report of all prompts is in the model card.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.cluster.cluster import Cluster

Tool = Callable[[str], ModuleType]
PROMPTS = 6  # a skill


@pytest.fixture(scope="module")
def prompts(tool: Tool) -> list[Any]:
    data = tool("data")
    return [prompt for skill in data.SKILLS for prompt in data.held_out(skill, PROMPTS)]


async def test_one_engine_and_two_workers_give_the_right_replies(
    tool: Tool, demo: Path, prompts: list[Any], tmp_path: Path
) -> None:
    engines = tool("engines")
    replies = engines.native_generate(demo)(prompts)
    wrong = [(p.messages[-1]["content"], p.answer, r) for p, r in zip(prompts, replies, strict=True) if p.answer != r]
    assert len(wrong) <= 0.03 * len(prompts), wrong

    async with Cluster.running(log_dir=tmp_path, settings={"model.dtype": "float32"}) as cluster:
        generate = await asyncio.to_thread(engines.server_generate, cluster.url, demo)
        assert await asyncio.to_thread(generate, prompts) == replies
        await cluster.at_rest()
        figures = await cluster.figures()
        assert figures.value("transfers_total", outcome="committed_received") == len(prompts)
        assert figures.value("prompt_tokens_computed_total", pool="decode") == 0
