"""Parsers are found by name, by a template, and in other distributions."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

import rtp_llm
from rtp_llm.errors import ConfigError
from rtp_llm.model.chat_template import ChatTemplate
from rtp_llm.model.parts import parsers_of, reasoning_forms, registry, tool_forms
from rtp_llm.model.parts.part import CallBegins, Steps, marked
from rtp_llm.model.parts.registry import shown_calls, shown_reasoning
from rtp_llm.model.parts.source import Source

HERMES = (
    r"""within <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": <args>}"""
)


@pytest.mark.parametrize(
    ("template", "calls"),
    [
        (HERMES, "hermes"),
        (HERMES + r"<function=example_function_name>\n<parameter=x>", "qwen3_coder"),
        (r"<tool_call>{name}\n<arg_key>", "none"),
        ("{{ '[TOOL_CALLS] ' + calls }}", "mistral"),
        ("{{ '<｜tool▁calls▁begin｜>' }}```json", "deepseek_v3"),
        ("{{ '<｜tool▁calls▁begin｜>' }}", "deepseek_v31"),
        ("""{{ '{"name": "' }}{{ '<|python_tag|>' }}""", "llama3_json"),
        ("{{ '<|python_start|>' }}", "llama4_pythonic"),
        ("<|start|>assistant<|channel|>analysis<|message|>", "openai"),
        ("{{ tools | tojson }}", "none"),
        ("", "none"),
    ],
)
def test_a_template_shows_how_its_model_calls(template: str, calls: str) -> None:
    assert shown_calls(template) == calls


def test_a_template_shows_how_its_model_thinks() -> None:
    demo = ChatTemplate.load(Path(rtp_llm.__file__).parent / "demo").source_for(tools=True)
    assert (shown_calls(demo), shown_reasoning(demo)) == ("hermes", "qwen3")
    assert shown_reasoning("<|channel|>analysis<|message|>") == "openai"
    assert shown_reasoning("{{ messages }}") == "none"


def test_settings_stand_above_the_template() -> None:
    parsers = parsers_of("json", "deepseek_r1", HERMES)
    assert (parsers.tool_calls, parsers.reasoning) == (tool_forms.plain_json, reasoning_forms.deepseek_r1)
    parsers = parsers_of("none", "none", HERMES + "</think>")
    assert (parsers.tool_calls, parsers.reasoning) == (None, None)


@pytest.mark.parametrize("named", [("openai", "auto"), ("auto", "openai"), ("openai", "none")])
def test_channels_hold_calls_and_reasoning_alike(named: tuple[str, str]) -> None:
    parsers = parsers_of(*named, "")
    assert (parsers.reasoning, parsers.tool_calls, parsers.calls_by_reasoning) == (reasoning_forms.openai, None, True)


@pytest.mark.parametrize(
    ("field", "named"), [("tool_parser", ("hermse", "auto")), ("reasoning_parser", ("auto", "r1"))]
)
def test_an_unknown_name_is_refused_with_those_that_there_are(field: str, named: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=rf"model\.{field}: '\w+' is unknown, there are auto, deepseek_\w+, "):
        parsers_of(*named, "")


@marked("<call>")
def shouted(source: Source, tools: tool_forms.Tools) -> Steps[None]:
    """Of another distribution: <call>NAME."""
    while (yield from source.text_until("<call>")):
        name, _ = yield from source.until(" ")
        yield CallBegins(name)


def test_another_distribution_may_bring_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = [
        EntryPoint("shouted", f"{__name__}:shouted", registry.TOOL_PARSERS),
        EntryPoint("broken", "no_such_module:parser", registry.TOOL_PARSERS),
    ]

    def entry_points(group: str) -> Any:
        return [each for each in offered if each.group == group]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    parsers = parsers_of("shouted", "auto", "")
    assert parsers.tool_calls is shouted and parsers.marks == ("<call>",)
    with pytest.raises(
        ConfigError, match=r"model\.tool_parser: 'broken' is no_such_module:parser, which can't be loaded"
    ):
        parsers_of("broken", "auto", "")
