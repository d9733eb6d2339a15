"""Held-out prompts over HTTP: what the model thinks, says and calls comes in parts, streamed or not."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from types import ModuleType
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests.cluster.cluster import Cluster

pytestmark = pytest.mark.asyncio(loop_scope="module")

SKILLS = {"tool_call": 80, "no_tool": 20, "tool_result": 20, "think": 80}  # prompts of each
AT_ONCE = 8
Parts = tuple[str, str, list[tuple[str, Any]]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[openai.AsyncOpenAI]:
    logs = tmp_path_factory.mktemp("workers")
    async with (
        Cluster.running(log_dir=logs, settings={"model.served_name": "demo"}) as cluster,
        openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def parts_of(answer: str) -> Parts:
    """(reasoning, content, calls) of an answer as the model writes it."""
    reasoning, closed, rest = answer.rpartition("</think>")
    calls = [json.loads(call) for call in re.findall(r"<tool_call>\n(.*?)\n</tool_call>", rest, re.S)]
    content = re.sub(r"\s*<tool_call>.*</tool_call>", "", rest, flags=re.S)
    named = [(call["name"], call["arguments"]) for call in calls]
    return reasoning.removeprefix("<think>").strip(), content.lstrip() if closed else content, named


async def whole(client: openai.AsyncOpenAI, request: dict[str, Any]) -> Parts:
    answer = await client.chat.completions.create(**request)
    message = answer.choices[0].message
    calls = [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or ()]
    return getattr(message, "reasoning_content", ""), message.content or "", calls


async def streamed(client: openai.AsyncOpenAI, request: dict[str, Any]) -> Parts:
    reasoning, content, names, arguments = "", "", list[str](), list[str]()
    async for chunk in await client.chat.completions.create(**request, stream=True):
        for choice in chunk.choices:
            reasoning += getattr(choice.delta, "reasoning_content", "")
            content += choice.delta.content or ""
            for call in choice.delta.tool_calls or ():
                assert call.function is not None
                if call.function.name:
                    names.append(call.function.name)
                    arguments.append("")
                arguments[call.index] += call.function.arguments or ""
    return reasoning, content, list(zip(names, map(json.loads, arguments), strict=True))


@pytest.mark.parametrize("share", [0.1, pytest.param(1.0, marks=pytest.mark.slow)])
async def test_answers_come_in_parts(
    client: openai.AsyncOpenAI, tool: Callable[[str], ModuleType], share: float
) -> None:
    prompts = [each for skill, count in SKILLS.items() for each in tool("data").held_out(skill, int(count * share))]
    turns = asyncio.Semaphore(AT_ONCE)

    async def check(prompt: Any) -> None:
        request = {"model": "demo", "messages": prompt.messages, "temperature": 0}
        if prompt.tools:
            request["tools"] = prompt.tools
        if prompt.enable_thinking is not None:
            request["extra_body"] = {"chat_template_kwargs": {"enable_thinking": prompt.enable_thinking}}
        async with turns:
            assert await whole(client, request) == parts_of(prompt.answer)
            assert await streamed(client, request) == parts_of(prompt.answer)

    await asyncio.gather(*map(check, prompts))


THOUGHT = "7 x 90 = 630, 7 x 1 = 7, 630 + 7 = 637."
SAID = f"7 x 91: {THOUGHT} So 7 x 91 = 637."


@pytest.mark.parametrize(
    ("asked", "content", "reasoning"),
    [
        ({}, SAID, THOUGHT),
        ({"include_reasoning": False}, SAID, None),
        ({"separate_reasoning": False}, f"<think>\n{THOUGHT}\n</think>\n\n{SAID}", None),
    ],
)
async def test_a_client_may_want_no_reasoning_or_all_of_it_as_content(
    client: openai.AsyncOpenAI, asked: dict[str, bool], content: str, reasoning: str | None
) -> None:
    answer = await client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "What is 7*91? Please think step by step."}],
        temperature=0,
        extra_body=asked,
    )
    message, usage = answer.choices[0].message, answer.usage
    assert (message.content, getattr(message, "reasoning_content", None)) == (content, reasoning)
    assert getattr(message, "reasoning", None) == reasoning
    details = usage.completion_tokens_details if usage else None
    if asked.get("separate_reasoning", True):
        assert details is not None and 10 < (details.reasoning_tokens or 0) < answer.usage.completion_tokens
    else:
        assert details is None


async def test_an_answer_goes_on_within_the_reasoning_of_its_message(client: openai.AsyncOpenAI) -> None:
    begun = {"role": "assistant", "content": f"<think>\n{THOUGHT[:11]}"}
    answer = await client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "What is 7*91? Please think step by step."}, begun],  # type: ignore[list-item]
        temperature=0,
        extra_body={"continue_final_message": True},
    )
    message = answer.choices[0].message
    assert message.content == SAID
    assert f"{THOUGHT[:11]}{message.reasoning_content}".replace(" ", "") == THOUGHT.replace(" ", "")  # type: ignore[attr-defined]


@pytest.mark.parametrize("asked", [{"enable_thinking": True}, {"chat_template_kwargs": {"enable_thinking": True}}])
async def test_thinking_is_asked_for_by_name(client: openai.AsyncOpenAI, asked: dict[str, Any]) -> None:
    answer = await client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "Compute 4+32"}], temperature=0, extra_body=asked
    )
    assert getattr(answer.choices[0].message, "reasoning", "") == "4 + 30 = 34, 34 + 2 = 36."


async def test_earlier_reasoning_reaches_the_template_under_either_name(client: openai.AsyncOpenAI) -> None:
    async def tokens(**thought: str) -> int:
        said = {"role": "assistant", "content": SAID, **thought}
        messages: Any = [{"role": "user", "content": "What is 7*91?"}, said]
        answer = await client.chat.completions.create(model="demo", messages=messages, max_tokens=1)
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    assert await tokens(reasoning=THOUGHT) == await tokens(reasoning_content=THOUGHT) > await tokens()
