"""Qwen3-Coder's form of calls: tags, and the values between them as texts, which the tool's schema gives their types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rtp_llm.model.parts.json_text import is_json
from rtp_llm.model.parts.part import Arguments, CallBegins, Part, Steps, Text, marked
from rtp_llm.model.parts.source import Source
from rtp_llm.model.parts.tool_forms import Tools, close

_PARAMETER, _END_OF_FUNCTION = "<parameter=", "</function>"


@marked("<tool_call>", "</tool_call>")
def qwen3_coder(source: Source, tools: Tools) -> Steps[None]:
    """<tool_call><function=name><parameter=x>value</parameter></function></tool_call>"""
    while (yield from source.text_until("<tool_call>")):
        name, mark = yield from _head(source)
        if mark:
            yield CallBegins(name)
            yield from _arguments(source, mark, _properties(tools, name))
            yield from close(source, "</tool_call>")
        else:
            yield Text(source.taken())


def _head(source: Source) -> Steps[tuple[str, str]]:
    """(the function's name, the tag behind <function=name>)."""
    yield from source.skip_space()
    if not (yield from source.skip("<function=")):
        return "", ""
    name, _ = yield from source.until(">")
    yield from source.skip_space()
    mark = yield from source.skip(_PARAMETER, _END_OF_FUNCTION)
    return name.strip(), mark if name.strip() else ""


def _arguments(source: Source, mark: str, properties: Mapping[str, Any]) -> Steps[None]:
    before = "{"
    while mark == _PARAMETER:
        name, closed = yield from source.until(">")
        if not closed:
            return
        yield Arguments(f"{before}{_written(name.strip())}: ")
        before = ", "
        if not (yield from _value(source, _types(properties.get(name.strip())))):
            return
        yield from source.skip_space()
        mark = yield from source.skip(_PARAMETER, _END_OF_FUNCTION)
    if mark or not source.ended:
        yield Arguments("{}" if before == "{" else "}")


def _value(source: Source, types: set[str]) -> Steps[bool]:
    """False: the answer ends within it."""
    if (yield from source.peek()) == "\n":
        source.read(1)
    ends = ("\n</parameter>", "</parameter>")
    if not types or types == {"string"}:
        yield Arguments('"')
        if not (yield from source.text_until(*ends, part=_piece)):
            return False
        yield Arguments('"')
        return True
    text, end = yield from source.until(*ends)
    yield Arguments(_typed(text, types) if end else text)
    return bool(end)


def _piece(text: str) -> Part:
    return Arguments(_written(text)[1:-1])


def _typed(text: str, types: set[str]) -> str:
    """As JSON; what isn't of its types is a text."""
    bare = text.strip()
    if "boolean" in types and bare.lower() in ("true", "false"):
        return bare.lower()
    if bare == "null" or ("string" not in types and is_json(bare)):
        return bare
    return _written(text)


def _written(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _properties(tools: Tools, name: str) -> Mapping[str, Any]:
    for tool in tools:
        function = tool.get("function") or {}
        if function.get("name") == name:
            found = (function.get("parameters") or {}).get("properties")
            return found if isinstance(found, Mapping) else {}
    return {}


def _types(schema: Any) -> set[str]:
    """That a schema names; none: anything."""
    if not isinstance(schema, Mapping):
        return set()
    named = schema.get("type")
    types = {named} if isinstance(named, str) else {each for each in named or () if isinstance(each, str)}
    for several in ("anyOf", "oneOf"):
        for each in schema.get(several) or ():
            types |= _types(each)
    return types
