"""Bodies of Anthropic's /v1/messages, as chats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from pydantic import BaseModel, Field

from rtp_llm.errors import InvalidRequestError, shortened
from rtp_llm.router.json_bytes import json_of
from rtp_llm.router.reading import BodyReader, naming
from rtp_llm.router.refused_fields import EMPTY, Table
from rtp_llm.router.schemas import STRICT, ChatBody, Recalled, Texts, Whole, must_be, text_in
from rtp_llm.router.token_bodies import TokenBody

REFUSED: Table = MappingProxyType(
    {
        "container": EMPTY,
        "context_management": EMPTY,
        "mcp_servers": EMPTY,
        "output_config": EMPTY,
        "output_format": EMPTY,
    }
)
THINKING = {"enabled": True, "disabled": False, "adaptive": None}  # type → whether the template is asked for it


class _Asked(BaseModel):
    """What a body may say, of its types."""

    model_config = STRICT

    model: str | None = None
    messages: list[Any]
    max_tokens: Whole | None = None
    system: str | list[Any] | None = None
    stop_sequences: Texts | None = None
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = None
    top_k: Whole | None = None
    tools: list[Any] | None = None
    tool_choice: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None


class MessagesBody(ChatBody):
    """A conversation; `max_tokens` must be given. Where the assistant has the last word, the answer goes on with it."""

    needs_limit: ClassVar[bool] = True
    written: ClassVar[Mapping[str, str]] = MappingProxyType({"stop": "stop_sequences"})

    @classmethod
    def refused_tables(cls) -> tuple[Table, ...]:
        return (REFUSED,)

    @classmethod
    def typed_by(cls) -> tuple[type[BaseModel], ...]:
        return (_Asked,)

    @classmethod
    def known_fields(cls) -> frozenset[str]:
        return frozenset((*_Asked.model_fields, *REFUSED))

    @classmethod
    def prepared(cls, content: Mapping[str, Any], recalled: Recalled) -> dict[str, Any]:
        """
        Raises:
            InvalidRequestError: names the field.
            pydantic.ValidationError: a field is of another type.
        """
        asked = _Asked.model_validate(content)
        if asked.max_tokens is None and cls.needs_limit:
            raise InvalidRequestError("max_tokens is required", param="max_tokens")
        messages = [
            *_system(asked.system),
            *(plain for index, each in enumerate(asked.messages) for plain in _message(f"messages[{index}]", each)),
        ]
        choice, parallel = _tool_choice(asked.tool_choice)
        thinking = _thinking(asked.thinking)
        begun = bool(messages) and messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls")
        chat = {
            "model": asked.model,
            "messages": messages,
            "max_tokens": asked.max_tokens,
            "stop": asked.stop_sequences or None,
            "stream": asked.stream,
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "top_k": asked.top_k,
            "tools": [_tool(f"tools[{index}]", each) for index, each in enumerate(asked.tools or ())] or None,
            "tool_choice": choice,
            "parallel_tool_calls": parallel,
            "continue_final_message": begun or None,
            "user": _user(asked.metadata),
            "chat_template_kwargs": None if thinking is None else {"enable_thinking": thinking},
        }
        return {name: value for name, value in chat.items() if value is not None}


class CountTokensBody(MessagesBody, TokenBody):
    """Of /v1/messages/count_tokens."""

    needs_limit: ClassVar[bool] = False

    def told(self, reader: BodyReader) -> bytes:
        text = reader.rendered(self)
        with naming("messages"):
            return json_of({"input_tokens": len(reader.tokenizer.encode(text, add_special_tokens=False))})


def _system(system: str | list[Any] | None) -> list[dict[str, Any]]:
    if not system:
        return []
    if isinstance(system, str):
        return [{"role": "system", "content": system}]
    return [{"role": "system", "content": [_text(f"system[{index}]", each) for index, each in enumerate(system)]}]


def _message(where: str, message: Any) -> Iterator[dict[str, Any]]:
    """One message of theirs: results of tools are messages of their own in a chat."""
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in ("user", "assistant"):
        raise must_be(f"{where}.role", "'user' or 'assistant'", role if isinstance(message, Mapping) else message)
    content = message.get("content")
    if isinstance(content, str):
        yield {"role": role, "content": content}
    elif isinstance(content, list):
        places = [f"{where}.content[{index}]" for index in range(len(content))]
        blocks = [(place, _block(place, each)) for place, each in zip(places, content, strict=True)]
        yield from _of_assistant(blocks) if role == "assistant" else _of_user(blocks)
    else:
        raise must_be(f"{where}.content", "a text or a list of blocks", content)


def _block(where: str, block: Any) -> Mapping[str, Any]:
    if not isinstance(block, Mapping) or not isinstance(block.get("type"), str):
        raise must_be(where, "a block with a type", block)
    return block


Blocks = list[tuple[str, Mapping[str, Any]]]


def _of_user(blocks: Blocks) -> Iterator[dict[str, Any]]:
    texts: list[dict[str, str]] = []
    for where, block in blocks:
        if block["type"] != "tool_result":
            texts.append(_text(where, block))
            continue
        if texts:
            yield {"role": "user", "content": texts}
            texts = []
        content = block.get("content")
        yield {
            "role": "tool",
            "tool_call_id": text_in(where, block, "tool_use_id"),
            "content": content if isinstance(content, str) else _texts(f"{where}.content", content or []),
        }
    if texts or not blocks:
        yield {"role": "user", "content": texts}


def _of_assistant(blocks: Blocks) -> Iterator[dict[str, Any]]:
    texts: list[dict[str, str]] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for where, block in blocks:
        kind = block["type"]
        if kind == "tool_use":
            arguments = block.get("input", {})
            if not isinstance(arguments, Mapping):
                raise must_be(f"{where}.input", "an object", arguments)
            function = {"name": text_in(where, block, "name"), "arguments": arguments}
            calls.append({"id": text_in(where, block, "id"), "type": "function", "function": function})
        elif kind == "thinking":
            thoughts.append(text_in(where, block, "thinking"))
        elif kind != "redacted_thinking":  # which nobody here can read
            texts.append(_text(where, block))
    said: dict[str, Any] = {"role": "assistant", "content": texts}
    if thoughts:
        said["reasoning_content"] = "\n".join(thoughts)
    if calls:
        said["tool_calls"] = calls
    yield said


def _texts(where: str, blocks: Any) -> list[dict[str, str]]:
    if not isinstance(blocks, list):
        raise must_be(where, "a text or a list of blocks", blocks)
    return [_text(f"{where}[{index}]", _block(f"{where}[{index}]", each)) for index, each in enumerate(blocks)]


def _text(where: str, block: Any) -> dict[str, str]:
    if _block(where, block)["type"] != "text" or not isinstance(block.get("text"), str):
        raise must_be(where, "a text block", block)
    return {"type": "text", "text": block["text"]}


def _tool(where: str, tool: Any) -> dict[str, Any]:
    if not isinstance(tool, Mapping):
        raise must_be(where, "an object", tool)
    if tool.get("type") not in (None, "custom"):
        raise InvalidRequestError(
            f"{where}.type {shortened(tool['type'])} is not supported: no tool runs on this server",
            param=f"{where}.type",
            value=tool["type"],
        )
    schema = tool.get("input_schema")
    if not isinstance(schema, Mapping):
        raise must_be(f"{where}.input_schema", "an object", schema)
    function = {"name": text_in(where, tool, "name"), "description": tool.get("description"), "parameters": schema}
    # In the order in which OpenAI's clients write it: templates show it as it is.
    return {"type": "function", "function": {name: each for name, each in function.items() if each is not None}}


def _tool_choice(choice: dict[str, Any] | None) -> tuple[str | None, bool | None]:
    """(OpenAI's word for it, whether calls may be parallel)."""
    if choice is None:
        return None, None
    kind = choice.get("type")
    if kind not in ("auto", "none"):
        raise InvalidRequestError(
            f"tool_choice.type is not supported, got {shortened(kind)}", param="tool_choice.type", value=kind
        )
    return kind, False if choice.get("disable_parallel_tool_use") is True else None


def _thinking(thinking: dict[str, Any] | None) -> bool | None:
    if thinking is None:
        return None
    kind = thinking.get("type")
    if not isinstance(kind, str) or kind not in THINKING:
        raise must_be("thinking.type", "enabled, disabled or adaptive", kind)
    return THINKING[kind]


def _user(metadata: dict[str, Any] | None) -> str | None:
    user = (metadata or {}).get("user_id")
    if user is not None and not isinstance(user, str):
        raise must_be("metadata.user_id", "a text", user)
    return user
