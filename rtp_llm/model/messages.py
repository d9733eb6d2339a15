"""Messages of a chat as templates expect them: checked, content a text or parts, arguments of tool calls objects."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rtp_llm.errors import ChatTemplateError, shortened

TEXT_PARTS = {"text": "text", "refusal": "refusal"}  # type of a part → the field that holds its text
# Fields of a message that no template shows, or that ask for what isn't computed: the functions of before `tools`, an answer
# that was spoken, an answer's beginning.
REFUSED = ("function_call", "audio", "prefix")


@dataclass(frozen=True)
class ContentForm:
    """What a template renders of a message's content: a text, so many parts of a list (0: no list), or either."""

    text: bool = True
    parts: int = 0

    def of(self, content: str | list[str]) -> str | list[dict[str, str]]:
        """Content in a form that the template renders, as near as can be to how it was given."""
        given = [content] if isinstance(content, str) else content
        if self.parts and not (self.text and isinstance(content, str)):
            given = given if len(given) <= self.parts else ["\n".join(given)]
            return [{"type": "text", "text": part} for part in given]
        return "\n".join(given)


def content_form(render: Callable[[list[dict[str, Any]]], str], role: str) -> ContentForm:
    """Found by rendering marked messages of `role` in either form. A template that loops over the parts of a text renders
    nothing of it; one that wants a text renders Python's or JSON's writing of a list."""
    marks = ("first mark", "second mark")

    def shown(content: Any, rest: Any) -> str:
        try:
            return render(_around({"role": role, "content": content}, rest))
        except Exception:  # the template is a program; it wants the other form, or a conversation that isn't known here
            return ""

    as_text = shown(marks[0], "x")
    as_parts = shown([{"type": "text", "text": mark} for mark in marks], [{"type": "text", "text": "x"}])
    written_out = any(raw in as_parts for raw in ("'type'", '"type"'))
    parts = 0 if written_out or marks[0] not in as_parts else sys.maxsize if marks[1] in as_parts else 1
    return ContentForm(text=marks[0] in as_text or not parts, parts=parts)


def _around(message: dict[str, Any], rest: Any) -> list[dict[str, Any]]:
    """A conversation with `message`; the other messages' content is `rest`."""
    user = {"role": "user", "content": rest}
    if message["role"] == "user":
        return [message]
    if message["role"] == "assistant":
        return [user, message, user]
    if message["role"] == "tool":
        call = {"id": "call_123456", "type": "function", "function": {"name": "f", "arguments": {}}}
        caller = {"role": "assistant", "content": rest, "tool_calls": [call]}
        return [user, caller, {**message, "tool_call_id": "call_123456", "name": "f"}]
    return [message, user]


def checked_message(where: str, message: object, form_of: Callable[[str], ContentForm]) -> dict[str, Any]:
    """
    Raises:
        ChatTemplateError: it is malformed; names the field, beginning with `where`.
    """
    if not isinstance(message, Mapping):
        raise _malformed(where, "an object", message)
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise _malformed(f"{where}.role", "a text", role)
    for name in REFUSED:
        if message.get(name):
            text = f"{where}.{name} is not supported, got {shortened(message[name])}"
            raise ChatTemplateError(text, param=f"{where}.{name}", value=message[name])
    silent = message.get("content") in (None, "", [])
    field = "refusal" if silent and message.get("refusal") else "content"
    if message.get(field) is None and role != "assistant":
        raise ChatTemplateError(f"{where}.content of role {shortened(role)} is required", param=f"{where}.content")
    plain = {**message, "content": form_of(role).of(_content(f"{where}.{field}", message.get(field)))}
    if isinstance(thought := message.get("reasoning"), str):
        plain.setdefault("reasoning_content", thought)  # templates know it under this name
    calls = message.get("tool_calls")
    if calls is not None and calls != []:
        where = f"{where}.tool_calls"
        if not isinstance(calls, list | tuple):
            raise _malformed(where, "a list", calls)
        plain["tool_calls"] = [_tool_call(f"{where}[{index}]", call) for index, call in enumerate(calls)]
    return plain


def _content(where: str, content: Any) -> str | list[str]:
    """A text, or the texts of its parts; no content (an assistant that only calls tools) is the empty text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _malformed(where, "a text or a list of parts", content)
    return [_part(f"{where}[{index}]", part) for index, part in enumerate(content)]


def _part(where: str, part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get(TEXT_PARTS[kind]) if isinstance(kind, str) and kind in TEXT_PARTS else None
    if not isinstance(text, str):
        raise _malformed(where, "a text part", part)
    return text


def _tool_call(where: str, call: Any) -> dict[str, Any]:
    """OpenAI's clients send arguments as JSON in a text; templates want the object."""
    if not isinstance(call, Mapping):
        raise _malformed(where, "an object", call)
    if call.get("type", "function") != "function":
        raise _malformed(f"{where}.type", "'function'", call["type"])
    function = call.get("function")
    if not isinstance(function, Mapping):
        raise _malformed(f"{where}.function", "an object", function)
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise _malformed(f"{where}.function.name", "a text", name)
    where = f"{where}.function.arguments"
    if "arguments" not in function:
        raise ChatTemplateError(f"{where} is required", param=where)
    return {**call, "function": {**function, "arguments": _arguments(where, function["arguments"])}}


def _arguments(where: str, given: Any) -> Mapping[str, Any]:
    """The object. None are {}, and so are those that a limit has cut: they stand in the history, where nobody can mend them."""
    arguments = given
    if isinstance(given, str):
        try:
            arguments = json.loads(given, strict=False) if given.strip() else {}
        except (ValueError, RecursionError):
            arguments = {}
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, Mapping):
        raise _malformed(where, "a JSON object", given)
    return arguments


def checked_tools(tools: Any, where: str = "tools") -> Sequence[Mapping[str, Any]]:
    """What a model may call.

    Raises:
        ChatTemplateError: one has no type, function or name; names the field.
    """
    if not isinstance(tools, list | tuple):
        raise _malformed(where, "a list", tools)
    for index, tool in enumerate(tools):
        at = f"{where}[{index}]"
        if not isinstance(tool, Mapping):
            raise _malformed(at, "an object", tool)
        function = tool.get("function")
        if not isinstance(function, Mapping):
            raise _malformed(f"{at}.function", "an object", function)
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise _malformed(f"{at}.function.name", "a text", name)
        if tool.get("type") != "function":
            raise _malformed(f"{at}.type", "'function'", tool.get("type"))
        if not isinstance(function.get("description", ""), str | None):
            raise _malformed(f"{at}.function.description", "a text", function["description"])
        if not isinstance(function.get("parameters", {}), Mapping | None):
            raise _malformed(f"{at}.function.parameters", "an object", function["parameters"])
    return tools


def _malformed(where: str, wanted: str, value: Any) -> ChatTemplateError:
    return ChatTemplateError(f"{where} must be {wanted}, got {shortened(value)}", param=where, value=value)
