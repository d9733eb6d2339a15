"""Tool calls are read out of an answer's text, however it is cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import rtp_llm
from rtp_llm.model.answer_text import Delta
from rtp_llm.model.chat_template import ChatTemplate
from rtp_llm.model.tool_calls import ToolCallParser, is_read

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
OTHER = '<tool_call>{"name": "now"}</tool_call>'
Calls = list[tuple[int, str, Any]]


def read(text: str, size: int, end: str = "stop", **options: Any) -> tuple[str, Calls, str | None]:
    """(text, calls, finish reason) of an answer that comes `size` characters at a time."""
    parser = ToolCallParser(**options)
    pieces = [text[i : i + size] for i in range(0, len(text), size)] or [""]
    deltas = [
        parser.take(Delta(piece, finish_reason=end if i == len(pieces) - 1 else None)) for i, piece in enumerate(pieces)
    ]
    calls = [call for delta in deltas for call in delta.tool_calls]
    assert all((call.name + call.arguments).encode() for call in calls)
    assert len({call.id for call in calls}) == len(calls) and all(call.id.startswith("call_") for call in calls)
    named: Calls = [(call.index, call.name, json.loads(call.arguments)) for call in calls]
    return "".join(delta.text for delta in deltas), named, deltas[-1].finish_reason


WEATHER = (0, "get_weather", {"city": "Paris"})


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("text", "shown", "calls"),
    [
        (CALL, "", [WEATHER]),
        (f"I look.\n{CALL}", "I look.", [WEATHER]),
        (f"{CALL}\n{OTHER}\n", "", [WEATHER, (1, "now", {})]),
        (f"A {CALL} B {OTHER} C", "A B C", [WEATHER, (1, "now", {})]),
        (CALL.removesuffix("</tool_call>"), "", [WEATHER]),
        ('<tool_call>{"name": "f", "parameters": {"x": 1.5}}</tool_call>', "", [(0, "f", {"x": 1.5})]),
        (
            '<tool_call>{"name": "f", "arguments": {"x": "a </tool_call> b"}}</tool_call>',
            "",
            [(0, "f", {"x": "a </tool_call> b"})],
        ),
        ('<tool_call>{"name": "f", "arguments": {"x": "a\nb"}}</tool_call>', "", [(0, "f", {"x": "a\nb"})]),
        (  # half of a character stays written as it was
            r'<tool_call>{"name": "f", "arguments": {"x": "\ud83d"}}</tool_call>',
            "",
            [(0, "f", {"x": "\ud83d"})],
        ),
        # no calls
        ("Plain text.\n", "Plain text.\n", []),
        ("a < b <tool> c <tool_cal", "a < b <tool> c <tool_cal", []),
        ("  \n ", "  \n ", []),
        ("", "", []),
        ("<tool_call>not JSON</tool_call> more", "<tool_call>not JSON</tool_call> more", []),
        ('<tool_call>{"arguments": {}}</tool_call>', '<tool_call>{"arguments": {}}</tool_call>', []),
        ("<tool_call>[1]</tool_call>", "<tool_call>[1]</tool_call>", []),
        *(
            (f"<tool_call>{call}</tool_call>", f"<tool_call>{call}</tool_call>", [])
            for call in (
                r'{"name": "f\ud83d"}',
                r'{"name": "f", "arguments": "\ud83d"}',
                f'{{"name": "f", "arguments": {"9" * 5000}}}',  # more digits than Python reads
            )
        ),
        ('<tool_call>{"name": "f", "argu', '<tool_call>{"name": "f", "argu', []),
        (f"<tool_call>broken</tool_call>{OTHER}", "<tool_call>broken</tool_call>", [(0, "now", {})]),
    ],
)
def test_calls_are_read_and_the_rest_stays_text(text: str, shown: str, calls: Calls, size: int) -> None:
    assert read(text, size) == (shown, calls, "tool_calls" if calls else "stop")


def test_an_answer_that_a_limit_or_a_stop_string_ended_says_so() -> None:
    assert read(CALL + OTHER[:20], 5, end="length")[1:] == ([WEATHER], "length")
    parser = ToolCallParser()
    ended = parser.take(Delta(CALL, finish_reason="stop", stop_reason="\n"))
    assert ended.finish_reason == "stop" and len(ended.tool_calls) == 1


def test_only_the_first_call_counts_where_calls_may_not_be_parallel() -> None:
    assert read(CALL + OTHER, 4, parallel=False)[1] == [WEATHER]


def test_text_goes_out_before_a_call_is_whole() -> None:
    parser = ToolCallParser()
    assert parser.take(Delta("I look. <tool_ca")).text == "I look."
    assert parser.take(Delta("ke> was it")).text == " <tool_cake> was it"


def test_only_the_form_that_is_read_is_found_in_a_template() -> None:
    demo = ChatTemplate.load(Path(rtp_llm.__file__).parent / "demo")
    assert is_read(demo.source_for(tools=True))
    qwen = """within <tool_call></tool_call> XML tags:\\n<tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": <args>}"""
    assert is_read(qwen)
    coder = qwen + "<function=example_function_name>\\n<parameter=x>"
    for other in ("", "{{ tools | tojson }}", coder, "<tool_call>{name}\\n<arg_key>"):
        assert not is_read(other)
