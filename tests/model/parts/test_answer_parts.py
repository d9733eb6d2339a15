"""An answer's parts, however it is cut: what all forms have in common."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rtp_llm.model.answer_text import Delta
from rtp_llm.model.parts import AnswerParts, PartsAsked, reasoning_forms, tool_forms
from rtp_llm.model.parts.answer_parts import joined_calls

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
OTHER = '<tool_call>{"name": "now"}</tool_call>'
Calls = list[tuple[int, str, Any]]


def deltas_of(text: str, size: int, end: str = "stop", **asked: Any) -> list[Delta]:
    """Of an answer that comes `size` characters at a time, each a token."""
    parts = AnswerParts(PartsAsked(**{"tool_calls": tool_forms.hermes, **asked}))
    pieces = [text[i : i + size] for i in range(0, len(text), size)] or [""]
    ends = [None] * (len(pieces) - 1) + [end]
    return [
        parts.take(Delta(piece, finish_reason=ended, num_tokens=1)) for piece, ended in zip(pieces, ends, strict=True)
    ]


def read(text: str, size: int, end: str = "stop", **asked: Any) -> tuple[str, Calls, str | None]:
    """(text, calls, finish reason)."""
    deltas = deltas_of(text, size, end, **asked)
    calls = joined_calls([call for delta in deltas for call in delta.tool_calls])
    assert len({call.id for call in calls}) == len(calls) and all(call.id.startswith("call_") for call in calls)
    named: Calls = [(call.index, call.name, json.loads(call.arguments)) for call in calls]
    return "".join(delta.text for delta in deltas), named, deltas[-1].finish_reason


WEATHER = (0, "get_weather", {"city": "Paris"})


def test_an_answer_that_a_limit_or_a_stop_string_ended_says_so() -> None:
    assert read(CALL + OTHER[:20], 5, end="length")[1:] == ([WEATHER], "length")
    parts = AnswerParts(PartsAsked(tool_calls=tool_forms.hermes))
    ended = parts.take(Delta(CALL, finish_reason="stop", stop_reason="\n"))
    assert ended.finish_reason == "stop" and len(ended.tool_calls) == 1


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_only_the_first_call_counts_where_calls_may_not_be_parallel(size: int) -> None:
    assert read(CALL + OTHER + " end", size, parallel=False) == (" end", [WEATHER], "tool_calls")


def test_text_goes_out_before_a_call_is_whole() -> None:
    parts = AnswerParts(PartsAsked(tool_calls=tool_forms.hermes))
    assert parts.take(Delta("I look. <tool_ca")).text == "I look."
    assert parts.take(Delta("ke> was it")).text == " <tool_cake> was it"


def test_arguments_go_out_as_they_come() -> None:
    parts = AnswerParts(PartsAsked(tool_calls=tool_forms.hermes))
    [begun] = parts.take(Delta('<tool_call>{"name": "write", "arguments": {"text": "on')).tool_calls
    assert (begun.index, begun.name, begun.arguments) == (0, "write", '{"text": "on')
    [more] = parts.take(Delta("ce upon")).tool_calls
    assert (more.index, more.id, more.name, more.arguments) == (0, "", "", "ce upon")


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "content", "reasoning"),
    [
        ("<think>\nhm,  so\n</think>\n\n Hi \n", "Hi \n", "hm,  so"),
        ("<think>\n\n</think>\n\nHi", "Hi", ""),
        (" Hi <think>x</think>\n", " Hi <think>x</think>\n", ""),
        (" \n", " \n", ""),
    ],
)
def test_white_space_between_reasoning_and_content_goes(text: str, content: str, reasoning: str, size: int) -> None:
    deltas = deltas_of(text, size, reasoning=reasoning_forms.qwen3)
    assert "".join(delta.text for delta in deltas) == content
    assert "".join(delta.reasoning for delta in deltas) == reasoning


def test_calls_are_read_behind_reasoning_and_not_in_it() -> None:
    deltas = deltas_of(f"<think>{OTHER}</think>{CALL}", 2, reasoning=reasoning_forms.qwen3)
    assert "".join(delta.reasoning for delta in deltas) == OTHER
    assert [call.name for delta in deltas for call in delta.tool_calls if call.name] == ["get_weather"]


def test_tokens_of_reasoning_are_counted_though_it_is_not_shown() -> None:
    deltas = deltas_of("<think>abc</think>abcdef", 6, reasoning=reasoning_forms.qwen3, shows_reasoning=False)
    assert [delta.reasoning for delta in deltas] == [""] * 4
    assert "".join(delta.text for delta in deltas) == "abcdef"
    assert [delta.num_reasoning_tokens for delta in deltas] == [0, 1, 1, 1]
