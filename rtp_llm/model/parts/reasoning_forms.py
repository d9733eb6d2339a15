"""The forms in which models write what they think, a parser each. Its Source is the whole answer; `prompt` is the end of the
rendered prompt."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

from rtp_llm.model.parts import json_text
from rtp_llm.model.parts.part import Arguments, CallBegins, Part, Reasoning, Steps, Text, marked
from rtp_llm.model.parts.source import Source

Parser: TypeAlias = Callable[[Source, str], Steps[None]]

_OPEN, _CLOSE = "<think>", "</think>"
_BEGINS, _MESSAGE = ("<|start|>", "<|channel|>"), "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>", *_BEGINS)
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
PROMPT_END_CHARS = 64
_RECIPIENT = re.compile(r"\bto=(?:functions\.)?([^\s<]+)")


def begun(prompt: str, *, continued: bool) -> str:
    """What parsers see of a rendered prompt: its end. A message that is continued may have opened its reasoning long before: it
    is taken to end with the mark."""
    if continued and prompt.rfind(_OPEN) > prompt.rfind(_CLOSE):
        return _OPEN
    return prompt[-PROMPT_END_CHARS:]


@marked(_OPEN, _CLOSE)
def qwen3(source: Source, prompt: str) -> Steps[None]:
    """<think> … </think>, the first of which the prompt may have."""
    yield from _thinking(source, _is_open(prompt))


@marked(_OPEN, _CLOSE)
def deepseek_r1(source: Source, prompt: str) -> Steps[None]:
    """The same; an answer is taken to think from its first word on."""
    yield from _thinking(source, not prompt.rstrip().endswith(_CLOSE))


def _thinking(source: Source, begun: bool) -> Steps[None]:
    yield from source.skip_space()
    if (yield from source.skip(_OPEN)) or begun:
        space = source.taken()
        yield Reasoning("" if space.endswith(_OPEN) else space)
        yield from source.text_until(_CLOSE, part=Reasoning)
    else:
        yield Text(source.taken())
    yield from source.text_until()


def _is_open(prompt: str) -> bool:
    return prompt.rstrip().endswith(_OPEN)


@marked(*_ENDS, _MESSAGE, "<|constrain|>")
def openai(source: Source, prompt: str) -> Steps[None]:
    """GPT-OSS's channels: <|start|>assistant<|channel|>NAME to=WHOM <|constrain|>FORM<|message|>TEXT<|end|>, calls too."""
    said: set[str] = set()
    mark = yield from source.text_until(*_BEGINS)
    while mark:
        if mark in _BEGINS:
            head, whole = yield from source.until(_MESSAGE)
            if not whole:
                return
            mark = yield from _message(source, mark + head, said)
        else:
            mark = yield from source.text_until(*_BEGINS)


def _message(source: Source, head: str, said: set[str]) -> Steps[str]:
    """Returns the mark behind it. `said`: channels that have had one."""
    if recipient := _RECIPIENT.search(head):
        yield CallBegins(recipient[1])
        if (yield from source.skip_space()) in ("{", "[", '"'):
            yield from json_text.arguments(source)
            _, mark = yield from source.until(*_ENDS)
            return mark
        text, mark = yield from source.until(*_ENDS)
        yield Arguments(text if text.strip() or not mark else "{}")
        return mark
    named = _CHANNEL.search(head)
    channel = "analysis" if named and named[1] == "analysis" else "final"
    part: Callable[[str], Part] = Reasoning if channel == "analysis" else Text
    if channel in said:
        yield part("\n")
    said.add(channel)
    return (yield from source.text_until(*_ENDS, part=part))
