"""The forms in which models write calls, a parser each. Its Source is an answer's text without the reasoning."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias

from rtp_llm.model.parts import json_text
from rtp_llm.model.parts.part import CallBegins, Steps, Text, marked
from rtp_llm.model.parts.source import Source

# As OpenAI's clients offer them: {"type": "function", "function": {"name", "parameters"}}.
Tools: TypeAlias = Sequence[Mapping[str, Any]]
Parser: TypeAlias = Callable[[Source, Tools], Steps[None]]

_WORD = re.compile(r"\w*")
_NAME = re.compile(r"[\w.:/-]*")


@marked("<tool_call>", "</tool_call>")
def hermes(source: Source, tools: Tools) -> Steps[None]:
    """<tool_call>{"name": …, "arguments": {…}}</tool_call>"""
    while (yield from source.text_until("<tool_call>")):
        if (yield from json_text.call(source)):
            yield from close(source, "</tool_call>")
        else:
            yield Text(source.taken())


@marked("<|python_tag|>")
def llama3_json(source: Source, tools: Tools) -> Steps[None]:
    """{"name": …, "parameters": {…}}; {…}, and text before it only if <|python_tag|> stands between."""
    if (yield from source.skip_space()) != "{":
        yield Text(source.taken())
        if not (yield from source.text_until("<|python_tag|>")):
            return
    found, offered = False, _names(tools)
    while (yield from json_text.call(source, offered)):
        found = True
        source.begin()
        if (yield from source.skip_space()) != ";":
            break
        source.read(1)
        yield from source.skip_space()
    if source.text or not found:
        yield Text(source.taken())
        yield from source.text_until()


def plain_json(source: Source, tools: Tools) -> Steps[None]:
    """{"name": …, "arguments": {…}} or [{…}, {…}], in a fence or not."""
    yield from source.skip_space()
    fence = yield from source.skip("```")
    if fence and (yield from source.run(_WORD)) not in ("", "json"):
        yield Text(source.taken())
    elif (yield from _calls(source, _names(tools))) and fence:
        yield from close(source, fence)
    yield from source.text_until()


@marked("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")
def mistral(source: Source, tools: Tools) -> Steps[None]:
    """[TOOL_CALLS][{"name": …, "arguments": {…}}], or [TOOL_CALLS]name{…}, or [TOOL_CALLS]name[ARGS]{…}."""
    while (yield from source.text_until("[TOOL_CALLS]")):
        if (yield from source.skip_space()) == "[":
            yield from _calls(source)
            continue
        name = yield from source.run(_NAME)
        if (yield from source.skip("[CALL_ID]", "[ARGS]")) == "[CALL_ID]":
            yield from source.until("[ARGS]")
        if name and (yield from source.skip_space()) == "{":
            yield CallBegins(name)
            yield from json_text.arguments(source)
        else:
            yield Text(source.taken())


_DEEPSEEK = [f"<｜tool▁{name}｜>" for name in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep")]
_CALLS_BEGIN, _CALLS_END, _CALL_BEGIN, _CALL_END, _SEPARATOR = _DEEPSEEK


@marked(*_DEEPSEEK)
def deepseek_v3(source: Source, tools: Tools) -> Steps[None]:
    yield from _deepseek(source, _fenced_call)


@marked(*_DEEPSEEK)
def deepseek_v31(source: Source, tools: Tools) -> Steps[None]:
    yield from _deepseek(source, _bare_call)


def _deepseek(source: Source, one_call: Callable[[Source], Steps[bool]]) -> Steps[None]:
    while (yield from source.text_until(_CALLS_BEGIN)):
        found, whole = False, True
        while whole:
            yield from source.skip_space()
            if not (yield from source.skip(_CALL_BEGIN)):
                break
            whole = yield from one_call(source)
            if whole:
                yield from close(source, _CALL_END)
                found = True
                source.begin()
        if found and whole:
            yield from close(source, _CALLS_END)
        else:
            yield Text(source.taken())


def _fenced_call(source: Source) -> Steps[bool]:
    """function<｜tool▁sep｜>name, and on lines of their own ```json, the arguments, ```."""
    yield from source.until(_SEPARATOR)
    name, _ = yield from source.until("\n")
    yield from source.skip_space()
    if not (yield from source.skip("```")):
        return False
    yield from source.run(_WORD)
    if not (yield from _call_of(source, name)):
        return False
    yield from close(source, "```")
    return True


def _bare_call(source: Source) -> Steps[bool]:
    """name<｜tool▁sep｜> and the arguments."""
    name, _ = yield from source.until(_SEPARATOR)
    return (yield from _call_of(source, name))


def _call_of(source: Source, name: str) -> Steps[bool]:
    """The arguments that come next, as a call. False: they don't."""
    if not name.strip() or (yield from source.skip_space()) not in ("{", "[", '"'):
        return False
    yield CallBegins(name.strip())
    yield from json_text.arguments(source)
    return True


def _calls(source: Source, offered: Collection[str] | None = None) -> Steps[bool]:
    """An object, or an array of objects, as calls. False: they end with what is none; that is given as text."""

    def one(source: Source) -> Steps[bool]:
        return (yield from json_text.call(source, offered))

    if (yield from source.skip_space()) == "[":
        return (yield from array(source, one))
    if (yield from one(source)):
        return True
    yield Text(source.taken())
    return False


def array(source: Source, one: Callable[[Source], Steps[bool | None]]) -> Steps[bool]:
    """The array of calls that begins here. `one` gives a call; False: what comes is none, None: the answer ends within it, and
    behind others it is passed over. False: the array ends with what is none; that is given as text."""
    source.read(1)
    found = False
    while (character := (yield from source.skip_space())) or not found:
        if character == "]" and found:
            source.read(1)
            return True
        if character == "," and found:
            source.read(1)
            continue
        given = yield from one(source)
        if given is None and found:
            return True
        if not given:
            yield Text(source.taken())
            return False
        found = True
        source.begin()
    return True


def _names(tools: Tools) -> set[str]:
    return {name for tool in tools if isinstance(name := (tool.get("function") or {}).get("name"), str)}


def close(source: Source, mark: str) -> Steps[None]:
    """Reads `mark` behind a call, and white space before it. The answer may end before it, or in it."""
    source.begin()
    yield from source.skip_space()
    if (yield from source.skip(mark)):
        return
    if source.ended and mark.startswith(source.text):
        source.read(len(source.text))
    else:
        yield Text(source.taken())
