"""Parsers by name: the package's own, what other distributions offer as entry points, and what a chat template shows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Final

from rtp_llm.errors import ConfigError
from rtp_llm.model.parts import pythonic, qwen3_coder, reasoning_forms, tool_forms
from rtp_llm.model.parts.part import marks_of

AUTO, NONE = "auto", "none"
TOOL_PARSERS: Final = "rtp_llm.tool_parsers"  # groups of entry points; each names a tool_forms.Parser
REASONING_PARSERS: Final = "rtp_llm.reasoning_parsers"  # or a reasoning_forms.Parser

TOOL_FORMS: Mapping[str, tool_forms.Parser] = {
    "deepseek_v3": tool_forms.deepseek_v3,
    "deepseek_v31": tool_forms.deepseek_v31,
    "hermes": tool_forms.hermes,
    "json": tool_forms.plain_json,
    "llama3_json": tool_forms.llama3_json,
    "llama4_pythonic": pythonic.llama4_pythonic,
    "mistral": tool_forms.mistral,
    "pythonic": pythonic.pythonic,
    "qwen3_coder": qwen3_coder.qwen3_coder,
}
REASONING_FORMS: Mapping[str, reasoning_forms.Parser] = {
    "deepseek_r1": reasoning_forms.deepseek_r1,
    "openai": reasoning_forms.openai,
    "qwen3": reasoning_forms.qwen3,
}


@dataclass(frozen=True)
class Parsers:
    """Of a model. None: it has no such parts, or they are content."""

    reasoning: reasoning_forms.Parser | None = None
    tool_calls: tool_forms.Parser | None = None
    calls_by_reasoning: bool = False  # the reasoning parser reads calls too

    @property
    def marks(self) -> tuple[str, ...]:
        return (*marks_of(self.reasoning), *marks_of(self.tool_calls))


def parsers_of(tool_parser: str, reasoning_parser: str, template: str) -> Parsers:
    """What `model.tool_parser` and `model.reasoning_parser` ask for, of a model with this chat template.

    Raises:
        ConfigError: there is no such parser, or its entry point can't be loaded.
    """
    reasoning = shown_reasoning(template) if reasoning_parser == AUTO else reasoning_parser
    tools = shown_calls(template) if tool_parser == AUTO else tool_parser
    if tools == "openai":
        reasoning, tools = "openai", NONE
    found = None if reasoning == NONE else _named(reasoning, REASONING_FORMS, REASONING_PARSERS, "reasoning_parser")
    return Parsers(
        reasoning=found,
        tool_calls=None if tools == NONE else _named(tools, TOOL_FORMS, TOOL_PARSERS, "tool_parser"),
        calls_by_reasoning=found is reasoning_forms.openai,
    )


def shown_calls(template: str) -> str:
    """The form of calls that a chat template shows to its model."""
    if "<|channel|>" in template:
        return "openai"
    if "<tool_call>" in template:
        if "<function=" in template:
            return "qwen3_coder"
        shown = all(re.search(rf"""["']{name}\\?["']""", template) for name in ("name", "arguments"))
        return "hermes" if shown and "<arg_key>" not in template else NONE
    if "<｜tool▁calls▁begin｜>" in template:
        return "deepseek_v3" if "```json" in template else "deepseek_v31"
    for mark, name in (
        ("[TOOL_CALLS]", "mistral"),
        ("<|python_start|>", "llama4_pythonic"),
        ("<|python_tag|>", "llama3_json"),
    ):
        if mark in template:
            return name
    return NONE


def shown_reasoning(template: str) -> str:
    """The form of reasoning that it shows."""
    if "<|channel|>" in template:
        return "openai"
    return "qwen3" if "</think>" in template else NONE


def _named(name: str, own: Mapping[str, Any], group: str, setting: str) -> Any:
    if name in own:
        return own[name]
    offered = {each.name: each for each in entry_points(group=group)}
    if name not in offered:
        there = ", ".join(sorted({AUTO, NONE, *own, *offered}))
        raise ConfigError(f"model.{setting}: {name!r} is unknown, there are {there}")
    try:
        return offered[name].load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"model.{setting}: {name!r} is {offered[name].value}, which can't be loaded: {error}"
        ) from error
