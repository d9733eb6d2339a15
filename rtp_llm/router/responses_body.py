"""Bodies of OpenAI's /v1/responses, as chats."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from pydantic import BaseModel, Field

from rtp_llm.errors import InvalidRequestError, shortened
from rtp_llm.router.json_bytes import json_of
from rtp_llm.router.reading import BodyReader, as_written, naming
from rtp_llm.router.refused_fields import RESPONSES, Table
from rtp_llm.router.response_store import AskedResponse, Item, References
from rtp_llm.router.schemas import STRICT, ChatBody, Recalled, Texts, Whole, must_be, text_in
from rtp_llm.router.token_bodies import TokenBody
from rtp_llm.sampling_params import MAX_TOKENS, Integer, SamplingParams

MAX_METADATA = 16  # OpenAI's limits: entries, characters of a name and of a value
MAX_METADATA_NAME = 64
MAX_METADATA_VALUE = 512
LOGPROBS = "message.output_text.logprobs"
INCLUDED = frozenset(  # what OpenAI knows
    {
        LOGPROBS,
        "file_search_call.results",
        "web_search_call.results",
        "web_search_call.action.sources",
        "message.input_image.image_url",
        "computer_call_output.output.image_url",
        "code_interpreter_call.outputs",
        "reasoning.encrypted_content",
    }
)
STATUSES = ("completed", "incomplete", "in_progress")
UNFINISHED = STATUSES[1:]
TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}  # type → field


class _Asked(BaseModel):
    """What a body may say beside a chat's fields, of its types."""

    model_config = STRICT

    model: str | None = None
    input: str | list[Any] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    max_output_tokens: Whole | None = None
    temperature: float | None = None
    top_p: float | None = None
    include: Texts | None = None
    top_logprobs: Whole | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Whole | None = None
    reasoning: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    stream_options: dict[str, Any] | None = None


# A chat's fields that mean the same here.
OF_CHATS = frozenset(ChatBody.model_fields) - frozenset(_Asked.model_fields) - frozenset(RESPONSES)


class ResponsesBody(ChatBody):
    """Items, after those of a response that is kept. A last message of the assistant that is unfinished is gone on with."""

    refused: ClassVar[Table] = RESPONSES
    written: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"messages": "input", "max_completion_tokens": "max_output_tokens", "reasoning_effort": "reasoning.effort"}
    )
    needs_input: ClassVar[bool] = True

    items: list[dict[str, Any]] = Field(default_factory=list)  # of `input`, each with an id
    shown: dict[str, Any] = Field(default_factory=dict)  # fields that the response repeats
    store: bool = True

    @classmethod
    def typed_by(cls) -> tuple[type[BaseModel], ...]:
        return (_Asked, ChatBody)

    @classmethod
    def known_fields(cls) -> frozenset[str]:
        tables = (name for table in cls.refused_tables() for name in table)
        return frozenset((*_Asked.model_fields, *OF_CHATS, *tables))

    @classmethod
    def references(cls, content: object) -> References:
        if not isinstance(content, Mapping):
            return References()
        previous, items = content.get("previous_response_id"), content.get("input")
        ids = [item["id"] for item in items if _is_reference(item)] if isinstance(items, list) else []
        return References(previous if isinstance(previous, str) else "", tuple(ids))

    @classmethod
    def prepared(cls, content: Mapping[str, Any], recalled: Recalled) -> dict[str, Any]:
        """
        Raises:
            InvalidRequestError: names the field.
            pydantic.ValidationError: a field is of another type.
        """
        asked = _Asked.model_validate(content)
        if asked.input is None and cls.needs_input:
            raise InvalidRequestError("input is required", param="input")
        if asked.max_output_tokens is not None:
            Integer(1, MAX_TOKENS).take("max_output_tokens", asked.max_output_tokens)
        history = recalled.get("previous_response_id", [])
        items = _items(asked.input, recalled.get("input", []), {item["id"] for item in history})
        messages = [*_instructions(asked.instructions), *_messages([*history, *items])]
        effort = _effort(asked.reasoning)
        shows_logprobs = _logprobs(asked.include, asked.top_logprobs)
        tools = [_tool(f"tools[{index}]", each) for index, each in enumerate(asked.tools or ())]
        _check_text(asked.text)
        chat = {
            **{name: content[name] for name in OF_CHATS & content.keys()},
            "model": asked.model,
            "messages": messages,
            "items": items,
            "shown": {**_shown(asked), "reasoning": {"effort": effort, "summary": None}, "tools": tools},
            "store": asked.store is not False,
            "stream": asked.stream,
            "max_completion_tokens": asked.max_output_tokens,
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "logprobs": shows_logprobs,
            "top_logprobs": asked.top_logprobs if shows_logprobs else None,
            "tools": [_chats_tool(tool) for tool in tools] or None,
            "tool_choice": asked.tool_choice,
            "parallel_tool_calls": asked.parallel_tool_calls,
            "reasoning_effort": effort,
            "user": asked.prompt_cache_key or asked.user,
        }
        if content.get("continue_final_message") is None and _is_begun(items, messages):
            chat["continue_final_message"] = True
        return {name: value for name, value in chat.items() if value is not None}

    def asked_response(self, sampling: SamplingParams) -> AskedResponse:
        shown = {**self.shown, "temperature": sampling.temperature, "top_p": sampling.top_p}
        fields = [json_of(name) + b":" + _encoded(name, value) for name, value in shown.items()]
        items: list[Item] = []
        if self.store:
            items = [(each["id"], _encoded(f"input[{index}]", each)) for index, each in enumerate(self.items)]
        return AskedResponse(shown=b"{" + b",".join(fields) + b"}", input=items, store=self.store)


class InputTokensBody(ResponsesBody, TokenBody):
    """Of /v1/responses/input_tokens."""

    needs_input: ClassVar[bool] = False

    def told(self, reader: BodyReader) -> bytes:
        with as_written(self):
            text = reader.rendered(self)
            with naming("messages"):
                count = len(reader.tokenizer.encode(text, add_special_tokens=False))
        return json_of({"object": "response.input_tokens", "input_tokens": count})


def _shown(asked: _Asked) -> dict[str, Any]:
    return {
        "background": False,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "max_tool_calls": asked.max_tool_calls,
        "metadata": _metadata(asked.metadata),
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": asked.previous_response_id or None,
        "prompt_cache_key": asked.prompt_cache_key,
        "safety_identifier": asked.safety_identifier,
        "service_tier": "default",
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": asked.tool_choice or "auto",
        "top_logprobs": asked.top_logprobs or 0,
        "truncation": "disabled",
        "user": asked.user,
    }


def _instructions(instructions: str | None) -> Iterator[dict[str, Any]]:
    if instructions:
        yield {"role": "system", "content": instructions}


# --- Items, as the response's input_items show them


def _items(given: str | list[Any] | None, referenced: list[Any], taken: set[str]) -> list[dict[str, Any]]:
    """`referenced`: what its references name, in their order. Who has an id that is `taken` gets another: pages of input_items
    begin behind an id."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    found = iter(referenced)
    items = []
    for index, each in enumerate(given or ()):
        item = next(found) if _is_reference(each) else _item(f"input[{index}]", each)
        if item["id"] in taken:
            item = {**item, "id": new_id(ITEMS[item["type"]][0])}
        taken.add(item["id"])
        items.append(item)
    return items


def _is_reference(item: Any) -> bool:
    """OpenAI's clients may leave out its type."""
    if not isinstance(item, Mapping) or not isinstance(item.get("id"), str):
        return False
    return item.get("type") == "item_reference" or (item.get("type") is None and "role" not in item)


def _item(where: str, item: Any) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise must_be(where, "an item", item)
    kind = "message" if item.get("type") is None else item["type"]
    if kind == "item_reference":
        raise must_be(f"{where}.id", "a text", item.get("id"))
    if not isinstance(kind, str) or kind not in ITEMS:
        raise InvalidRequestError(f"{where}.type {shortened(kind)} is not supported", param=f"{where}.type", value=kind)
    prefix, fields = ITEMS[kind]
    status = "completed" if item.get("status") is None else item["status"]
    if not isinstance(status, str) or status not in STATUSES:
        raise must_be(f"{where}.status", "completed, incomplete or in_progress", status)
    id = new_id(prefix) if item.get("id") is None else text_in(where, item, "id")
    return {"id": id, "type": kind, "status": status, **fields(where, item)}


def _message(where: str, item: Mapping[str, Any]) -> dict[str, Any]:
    role = item.get("role")
    if role not in ("user", "assistant", "system", "developer"):
        raise must_be(f"{where}.role", "user, assistant, system or developer", role)
    kind = "output_text" if role == "assistant" else "input_text"
    return {"role": role, "content": _parts(f"{where}.content", item.get("content"), kind)}


def _function_call(where: str, item: Mapping[str, Any]) -> dict[str, Any]:
    name = text_in(where, item, "name")
    if not name:
        raise must_be(f"{where}.name", "a text that isn't empty", name)
    return {"call_id": text_in(where, item, "call_id"), "name": name, "arguments": text_in(where, item, "arguments")}


def _function_call_output(where: str, item: Mapping[str, Any]) -> dict[str, Any]:
    output = item.get("output")
    shown = output if isinstance(output, str) else _parts(f"{where}.output", output, "input_text")
    return {"call_id": text_in(where, item, "call_id"), "output": shown}


def _reasoning(where: str, item: Mapping[str, Any]) -> dict[str, Any]:
    """What is encrypted nobody here can read."""
    return {
        "summary": _thoughts(f"{where}.summary", item.get("summary"), "summary_text"),
        "content": _thoughts(f"{where}.content", item.get("content"), "reasoning_text"),
    }


# Type → (of new ids, its own fields).
ITEMS: Mapping[str, tuple[str, Callable[[str, Mapping[str, Any]], dict[str, Any]]]] = MappingProxyType(
    {
        "message": ("msg", _message),
        "function_call": ("fc", _function_call),
        "function_call_output": ("fco", _function_call_output),
        "reasoning": ("rs", _reasoning),
    }
)


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def _parts(where: str, content: Any, kind: str) -> list[dict[str, Any]]:
    """A text, or parts, as parts of type `kind`."""
    if isinstance(content, str):
        content = [{"type": kind, "text": content}]
    if not isinstance(content, list):
        raise must_be(where, "a text or a list of parts", content)
    return [_part(f"{where}[{index}]", part, kind) for index, part in enumerate(content)]


def _part(where: str, part: Any, kind: str) -> dict[str, Any]:
    given = part.get("type") if isinstance(part, Mapping) else None
    field = TEXT_PARTS.get(given) if isinstance(given, str) else None
    if field is None:
        raise must_be(where, "a text part", part)
    if field == "refusal" and kind == "output_text":
        return {"type": "refusal", "refusal": text_in(where, part, "refusal")}
    shown = {"type": kind, "text": text_in(where, part, field)}
    return {**shown, "annotations": []} if kind == "output_text" else shown


def _thoughts(where: str, parts: Any, kind: str) -> list[dict[str, Any]]:
    if not isinstance(parts, list | None):
        raise must_be(where, "a list of parts", parts)
    for index, part in enumerate(parts or ()):
        if not isinstance(part, Mapping) or part.get("type") != kind:
            raise must_be(f"{where}[{index}]", f"a part of type {kind}", part)
    return [
        {"type": kind, "text": text_in(f"{where}[{index}]", part, "text")} for index, part in enumerate(parts or ())
    ]


# --- Items as messages of a chat


def _messages(items: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Reasoning, a message and the calls that follow it are one message of the assistant."""
    messages: list[dict[str, Any]] = []
    said: dict[str, Any] = {}  # the assistant's message that may grow; empty: none
    for item in items:
        kind = item["type"]
        if kind == "function_call_output" or item.get("role", "assistant") != "assistant":
            said = {}
            messages.append(_heard(item))
            continue
        if not said or _begins(kind, said):
            said = {"role": "assistant", "content": []}
            messages.append(said)
        if kind == "message":
            said["content"] += _texts(item["content"])
        elif kind == "reasoning":
            thought = "\n".join(part["text"] for part in item["content"] or item["summary"])
            said["reasoning_content"] = "\n".join(filter(None, (said.get("reasoning_content"), thought)))
        else:
            function = {"name": item["name"], "arguments": item["arguments"]}
            call = {"id": item["call_id"], "type": "function", "function": function}
            said.setdefault("tool_calls", []).append(call)
    return [{**message, "content": _plain(message["content"])} for message in messages]


def _begins(kind: str, said: Mapping[str, Any]) -> bool:
    """Whether what the assistant says next is a message of its own: text that follows text, reasoning that follows either."""
    return (kind == "message" and bool(said["content"]) and "tool_calls" not in said) or (
        kind == "reasoning" and (bool(said["content"]) or "tool_calls" in said)
    )


def _heard(item: Mapping[str, Any]) -> dict[str, Any]:
    if item["type"] == "message":
        return {"role": item["role"], "content": _texts(item["content"])}
    output = item["output"]
    return {
        "role": "tool",
        "tool_call_id": item["call_id"],
        "content": output if isinstance(output, str) else _texts(output),
    }


def _plain(content: str | list[dict[str, str]]) -> str | list[dict[str, str]]:
    """One part is a text, as chats mostly have it."""
    return content[0]["text"] if isinstance(content, list) and len(content) == 1 else content


def _texts(parts: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    return [{"type": "text", "text": part[TEXT_PARTS[part["type"]]]} for part in parts]


def _is_begun(items: list[dict[str, Any]], messages: list[dict[str, Any]]) -> bool:
    """Whether the answer goes on with the last message."""
    if not items or items[-1]["type"] != "message" or items[-1]["status"] not in UNFINISHED:
        return False
    return messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]


# --- Other fields


def _tool(where: str, tool: Any) -> dict[str, Any]:
    """As the response shows it."""
    if not isinstance(tool, Mapping):
        raise must_be(where, "an object", tool)
    if tool.get("type") != "function":
        raise InvalidRequestError(
            f"{where}.type {shortened(tool.get('type'))} is not supported: only functions are, which the client calls",
            param=f"{where}.type",
            value=tool.get("type"),
        )
    name = text_in(where, tool, "name")
    if not name:
        raise must_be(f"{where}.name", "a text that isn't empty", name)
    for field, kind, wanted in (
        ("description", str, "a text"),
        ("parameters", Mapping, "an object"),
        ("strict", bool, "true or false"),
    ):
        if not isinstance(tool.get(field), kind | None):
            raise must_be(f"{where}.{field}", wanted, tool[field])
    shown = {field: tool.get(field) for field in ("description", "parameters", "strict")}
    return {"type": "function", "name": name, **shown}


def _chats_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """In the order in which a chat's clients write it: templates show it as it is."""
    function = {field: tool[field] for field in ("name", "description", "parameters") if tool[field] is not None}
    return {"type": "function", "function": function}


def _logprobs(include: list[str] | None, top_logprobs: int | None) -> bool:
    """Whether they are shown."""
    for index, name in enumerate(include or ()):
        if name not in INCLUDED:
            where = f"include[{index}]"
            raise InvalidRequestError(f"{where} is not known, got {shortened(name)}", param=where, value=name)
    shown = LOGPROBS in (include or ())
    if top_logprobs and not shown:
        raise InvalidRequestError(
            f"top_logprobs {top_logprobs} needs include: [{LOGPROBS!r}]", param="top_logprobs", value=top_logprobs
        )
    return shown


def _effort(reasoning: dict[str, Any] | None) -> str | None:
    effort = (reasoning or {}).get("effort")
    if not isinstance(effort, str | None):
        raise must_be("reasoning.effort", "a text", effort)
    return effort


def _check_text(text: dict[str, Any] | None) -> None:
    asked = text or {}
    shape = asked.get("format")
    if shape is not None and (not isinstance(shape, Mapping) or shape.get("type") != "text"):
        raise InvalidRequestError(
            f"text.format is not supported, got {shortened(shape)}", param="text.format", value=shape
        )
    verbosity = asked.get("verbosity")
    if verbosity not in (None, "medium"):
        raise InvalidRequestError(
            f"text.verbosity is not supported, got {shortened(verbosity)}", param="text.verbosity", value=verbosity
        )


def _metadata(metadata: dict[str, Any] | None) -> dict[str, str]:
    entries = metadata or {}
    if len(entries) > MAX_METADATA:
        raise InvalidRequestError(
            f"metadata has {len(entries)} entries, at most {MAX_METADATA} are allowed", param="metadata"
        )
    for name, value in entries.items():
        if len(name) > MAX_METADATA_NAME or not isinstance(value, str) or len(value) > MAX_METADATA_VALUE:
            wanted = f"texts of at most {MAX_METADATA_VALUE} characters under names of at most {MAX_METADATA_NAME}"
            raise must_be("metadata", wanted, {name: value})
    return entries


def _encoded(where: str, value: Any) -> bytes:
    try:
        return json_of(value)
    except (ValueError, RecursionError) as error:  # half a character, NaN
        raise must_be(where, "JSON in valid Unicode", value) from error
