"""Answers in the shape of Anthropic's /v1/messages: content blocks, whole or as events."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from rtp_llm.model.answer_text import Delta, ToolCall
from rtp_llm.router import responses
from rtp_llm.router.answers import Answers, Question, joined
from rtp_llm.router.json_bytes import json_of
from rtp_llm.router.usage import Usage
from rtp_llm.router.writer import Form, event

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class AnthropicWriter:
    """Writer of one message."""

    def __init__(self, model: str, question: Question) -> None:
        self.id = f"msg_{uuid.uuid4().hex}"
        self._model = model
        self._began = False
        self._block = -1  # index of the one that is open, or the last
        self._kind = ""  # of the open one: its type, and of a call its index; empty: none is open

    def whole(self, answers: Answers, choices: Sequence[Sequence[Delta]]) -> bytes:
        answer = joined(choices[0])
        content: list[dict[str, Any]] = []
        if answer.reasoning:
            content.append({"type": "thinking", "thinking": answer.reasoning, "signature": ""})
        if answer.text or not (content or answer.tool_calls):
            content.append({"type": "text", "text": answer.text})
        content += [_tool_use(call, _arguments(call.arguments)) for call in answer.tool_calls]
        return json_of({**self._message(content), **_stop(answer), "usage": _usage(answers.usage)})

    def events_of(self, answers: Answers, index: int, delta: Delta) -> Iterator[bytes]:
        if not self._began:
            self._began = True
            started = {**self._message([]), "stop_reason": None, "stop_sequence": None, "usage": _usage(answers.usage)}
            yield event({"type": "message_start", "message": started}, "message_start")
        if delta.reasoning:
            yield from self._open("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            yield self._grown({"type": "thinking_delta", "thinking": delta.reasoning})
        if delta.text:
            yield from self._open("text", {"type": "text", "text": ""})
            yield self._grown({"type": "text_delta", "text": delta.text})
        for call in delta.tool_calls:
            yield from self._open(f"tool_use {call.index}", _tool_use(call, {}))
            if call.arguments:
                yield self._grown({"type": "input_json_delta", "partial_json": call.arguments})
        if delta.finish_reason is not None:
            if self._block < 0:
                yield from self._open("text", {"type": "text", "text": ""})
            yield from self._close()
            body = {"type": "message_delta", "delta": _stop(delta), "usage": _usage(answers.usage)}
            yield event(body, "message_delta")

    def last_events(self, answers: Answers) -> Iterator[bytes]:
        yield event({"type": "message_stop"}, "message_stop")

    def failed(self, error: Exception) -> Iterator[bytes]:
        yield event(error_body(error)[1], "error")

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "type": "message", "role": "assistant", "model": self._model, "content": content}

    def _open(self, kind: str, block: dict[str, Any]) -> Iterator[bytes]:
        """Unless it is open."""
        if self._kind == kind:
            return
        yield from self._close()
        self._kind = kind
        self._block += 1
        body = {"type": "content_block_start", "index": self._block, "content_block": block}
        yield event(body, "content_block_start")

    def _close(self) -> Iterator[bytes]:
        if self._kind:
            self._kind = ""
            yield event({"type": "content_block_stop", "index": self._block}, "content_block_stop")

    def _grown(self, delta: dict[str, Any]) -> bytes:
        return event({"type": "content_block_delta", "index": self._block, "delta": delta}, "content_block_delta")


def _tool_use(call: ToolCall, arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments}


def _arguments(text: str) -> Any:
    """What the model wrote, if a limit has not cut it."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return {}


def _stop(answer: Delta) -> dict[str, Any]:
    by_text = isinstance(answer.stop_reason, str)
    reason = "stop_sequence" if by_text else STOP_REASONS.get(answer.finish_reason or "", "end_turn")
    return {"stop_reason": reason, "stop_sequence": answer.stop_reason if by_text else None}


def _usage(usage: Usage) -> dict[str, Any]:
    """Tokens that were found in the cache count apart."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def error_body(error: Exception) -> tuple[int, dict[str, Any]]:
    """HTTP status and Anthropic's error object: what OpenAI's says, by other types."""
    status, body = responses.error_body(error)
    kind = ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return status, {"type": "error", "error": {"type": kind, "message": body["error"]["message"]}}


MESSAGES = Form("messages", AnthropicWriter, error_body)
