"""Each form against answers whose parts are written out: whole, a character at a time, and cut at every position."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.model.answer_text import Delta
from rtp_llm.model.parts import AnswerParts, PartsAsked
from rtp_llm.model.parts.answer_parts import joined_calls
from rtp_llm.model.parts.registry import REASONING_FORMS, TOOL_FORMS

CASES = Path(__file__).parent / "cases"
FORMS = sorted({*TOOL_FORMS, *REASONING_FORMS})
Read = tuple[str, str, list[tuple[str, str]]]


def read(asked: PartsAsked, pieces: Sequence[str]) -> Read:
    """(content, reasoning, calls as name and arguments)."""
    parts = AnswerParts(asked)
    deltas = [parts.take(Delta(piece)) for piece in pieces] + [parts.take(Delta("", finish_reason="stop"))]
    calls = joined_calls([call for delta in deltas for call in delta.tool_calls])
    assert [call.index for call in calls] == list(range(len(calls)))
    assert all((call.name + call.arguments).encode() for call in calls)
    return (
        "".join(delta.text for delta in deltas),
        "".join(delta.reasoning for delta in deltas),
        [(call.name, call.arguments) for call in calls],
    )


def cases_of(form: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (CASES / f"{form}.jsonl").read_text().splitlines()]


def asked_of(form: str, case: dict[str, Any]) -> PartsAsked:
    """A case that doesn't say otherwise was offered the tools that it calls."""
    called = [{"type": "function", "function": {"name": call["name"]}} for call in case.get("calls", ())]
    return PartsAsked(
        reasoning=REASONING_FORMS.get(form),
        tool_calls=TOOL_FORMS.get(form),
        tools=case.get("tools", called),
        prompt_end=case.get("prompt_end", ""),
    )


def cuts(text: str) -> Iterator[Sequence[str]]:
    yield list(text)
    for at in range(1, len(text)):
        yield text[:at], text[at:]


@pytest.mark.parametrize("form", FORMS)
def test_the_parts_of_an_answer_are_what_is_written_out(form: str) -> None:
    for case in cases_of(form):
        content, reasoning, calls = read(asked_of(form, case), [case["text"]])
        assert (content, reasoning) == (case.get("content", ""), case.get("reasoning", "")), case
        wanted = case.get("calls", [])
        assert [name for name, _ in calls] == [call["name"] for call in wanted], case
        for (_, arguments), call in zip(calls, wanted, strict=True):
            if "arguments" in call:
                assert json.loads(arguments) == call["arguments"], case
            else:
                assert arguments == call["arguments_text"], case


@pytest.mark.parametrize("form", FORMS)
def test_it_does_not_matter_how_an_answer_is_cut(form: str) -> None:
    for case in cases_of(form):
        asked = asked_of(form, case)
        whole = read(asked, [case["text"]])
        for pieces in cuts(case["text"]):
            assert read(asked, pieces) == whole, (case, pieces)


FRAGMENTS = (
    "<tool_call>", "</tool_call>", "<function=f>", "<parameter=x>", "</parameter>", "</function>", "<think>", "</think>",
    "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>", "<|python_start|>", "<|python_end|>", "<|start|>", "<|end|>",
    "<|channel|>", "analysis", "commentary to=functions.f", "<|message|>", "<|call|>", "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>", "function", "```json", "```",
    '"name"', '"arguments"', '"f"', '{"name": "f", "arguments": {', "{", "}", "[", "]", "(", ")", ":", ",", ";", "=", '"', "\\",
    "'", "\n", " ", "x", "1", "null", "[f(", "é", "<", "<tool_",
)  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_any_text_is_read_to_its_end(form: str) -> None:
    draw = random.Random(form)
    asked = asked_of(form, {})
    for _ in range(400):
        pieces = draw.choices(FRAGMENTS, k=draw.randrange(1, 14))
        whole = read(asked, ["".join(pieces)])
        assert read(asked, pieces) == whole == read(asked, list("".join(pieces))), pieces


def test_each_form_has_fifty_answers() -> None:
    assert {form: len(cases_of(form)) >= 50 for form in FORMS} == dict.fromkeys(FORMS, True)
