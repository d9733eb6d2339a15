"""The chat template, the renderer of the training documents and the shipped template are one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest

from rtp_llm.model.chat_template import ChatTemplate

Tool = Callable[[str], ModuleType]
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}}


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


@pytest.fixture(scope="module")
def template(tool: Tool) -> ChatTemplate:
    return ChatTemplate({"default": tool("chatml").TEMPLATE}, {})


def render(template: ChatTemplate, messages: list[Any], tools: Any, enable_thinking: bool | None) -> str:
    given = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
    return template.render(messages, tools=tools, variables=given)


@pytest.mark.parametrize("enable_thinking", [None, False, True])
@pytest.mark.parametrize("tools", [None, [WEATHER], [WEATHER, WEATHER]])
@pytest.mark.parametrize(
    "messages",
    [
        [turn("user", "Hi")],
        [turn("system", "Be brief."), turn("user", "Hi")],
        [turn("user", "Hi"), turn("assistant", "Hello!"), turn("user", "Paris?")],
        [turn("user", "2 + 2"), turn("assistant", "<think>\nEasy.\n</think>\n\n4"), turn("user", "Thanks")],
        [turn("user", "Paris?"), turn("assistant", "", tool_calls=[CALL]), turn("tool", "sunny"), turn("tool", "21")],
        [turn("user", "Paris?"), turn("assistant", "Well.", tool_calls=[CALL, CALL]), turn("tool", "sunny")],
        [turn("user", "Paris?"), turn("assistant", "<think>\nA tool.\n</think>\n\n", tool_calls=[CALL]), turn("tool", "1")],
    ],
)  # fmt: skip
def test_template_and_renderer_agree(tool: Tool, template: ChatTemplate, messages, tools, enable_thinking):
    rendered = render(template, messages, tools, enable_thinking)
    assert rendered == tool("chatml").prompt_text(messages, tools, enable_thinking)


def test_template_and_renderer_agree_on_every_skill(tool: Tool, template: ChatTemplate):
    for skill in tool("heldout").ALL_SKILLS:
        for messages, _, tools, enable_thinking in tool("data").held_out(skill, 20):
            expected = tool("chatml").prompt_text(messages, tools, enable_thinking)
            assert render(template, messages, tools, enable_thinking) == expected


def test_a_training_document_is_the_prompt_and_the_reply_of_its_last_turn(tool: Tool, template: ChatTemplate):
    chatml = tool("chatml")
    for enable_thinking in (None, False, True):
        reply = "4" if enable_thinking is False else "<think>\nEasy.\n</think>\n\n4"
        messages = [turn("user", "2 + 2")]
        document = "".join(
            s.text for s in chatml.segments([*messages, turn("assistant", reply)], None, enable_thinking)
        )
        prompt = render(template, messages, None, enable_thinking)
        assert document.startswith(prompt)
        assert document[len(prompt) :] == reply.removeprefix("<think>\n" if enable_thinking else "") + "<|im_end|>\n"


def test_thoughts_of_earlier_turns_are_dropped_and_no_target(tool: Tool):
    messages = [turn("user", "2 + 2"), turn("assistant", "<think>\nEasy.\n</think>\n\n4"), turn("user", "3 + 3"),
                turn("assistant", "<think>\nEasy.\n</think>\n\n6")]  # fmt: skip
    replies = [s for s in tool("chatml").segments(messages) if s.text.endswith("<|im_end|>")]
    assert [(s.text, s.is_target) for s in replies] == [
        ("4<|im_end|>", False),
        ("<think>\nEasy.\n</think>\n\n6<|im_end|>", True),
    ]


def test_reasoning_content_is_a_thought(template: ChatTemplate):
    messages = [turn("user", "2 + 2"), turn("assistant", "4", reasoning_content="Easy."), turn("tool", "x")]
    assert "assistant\n<think>\nEasy.\n</think>\n\n4<|im_end|>" in template.render(messages)


def test_shipped_template_is_the_one_of_training(tool: Tool, demo: Path):
    assert json.loads((demo / "tokenizer_config.json").read_text())["chat_template"] == tool("chatml").TEMPLATE


def test_documents_render_messages_of_both_sides(tool: Tool):
    text = "".join(s.text for s in tool("data").training_document(Random(3), 3000))
    assert text.count("<|im_start|>") == text.count("<|im_end|>") > 4
