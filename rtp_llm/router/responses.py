"""Answers in OpenAI's shapes: whole bodies, stream chunks, errors."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from rtp_llm.errors import InvalidRequestError, RtpLlmError
from rtp_llm.model.answer_text import Delta, TokenLogprob, ToolCall
from rtp_llm.router.answers import Answers, Question, joined
from rtp_llm.router.json_bytes import json_of
from rtp_llm.router.writer import Form, event

ERROR_TYPES = {
    400: "invalid_request_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class CompletionShape:
    """/v1/completions."""

    id_prefix = "cmpl-"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def first_chunk(self, index: int) -> dict[str, Any] | None:
        return None

    def show_prompt(self, body: dict[str, Any], choice: dict[str, Any], token_ids: list[int]) -> None:
        """Where vLLM's clients look for the prompt's token ids."""
        choice["prompt_token_ids"] = token_ids

    def delta_choice(self, index: int, delta: Delta, with_logprobs: bool) -> dict[str, Any]:
        return {
            "index": index,
            "text": delta.text,
            "logprobs": self._logprobs(delta.logprobs) if with_logprobs else None,
            "finish_reason": delta.finish_reason,
        }

    whole_choice = delta_choice

    @staticmethod
    def _logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        return {
            "tokens": [each.token for each in tokens],
            "token_logprobs": [each.logprob for each in tokens],
            "top_logprobs": [_by_name(each) for each in tokens],
            "text_offset": [each.offset for each in tokens],
        }


class ChatShape:
    """/v1/chat/completions."""

    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def first_chunk(self, index: int) -> dict[str, Any] | None:
        return {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }

    def show_prompt(self, body: dict[str, Any], choice: dict[str, Any], token_ids: list[int]) -> None:
        """As CompletionShape's: all choices have the same prompt."""
        body["prompt_token_ids"] = token_ids

    def delta_choice(self, index: int, delta: Delta, with_logprobs: bool) -> dict[str, Any]:
        return {
            "index": index,
            "delta": self._grown(delta),
            "logprobs": self._logprobs(delta.logprobs) if with_logprobs else None,
            "finish_reason": delta.finish_reason,
        }

    def whole_choice(self, index: int, delta: Delta, with_logprobs: bool) -> dict[str, Any]:
        return {
            "index": index,
            "message": self._message(delta),
            "logprobs": self._logprobs(delta.logprobs) if with_logprobs else None,
            "finish_reason": delta.finish_reason,
        }

    @staticmethod
    def _grown(delta: Delta) -> dict[str, Any]:
        if not (delta.tool_calls or delta.reasoning):
            return {"content": delta.text} if delta.text or not delta.finish_reason else {}
        grown: dict[str, Any] = _reasoning(delta)
        if delta.text:
            grown["content"] = delta.text
        if delta.tool_calls:
            grown["tool_calls"] = [_grown_call(call) for call in delta.tool_calls]
        return grown

    @staticmethod
    def _message(delta: Delta) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": delta.text,
            "refusal": None,
            **_reasoning(delta),
        }
        if delta.tool_calls:
            message["content"] = delta.text or None
            message["tool_calls"] = [_tool_call(call) for call in delta.tool_calls]
        return message

    @staticmethod
    def _logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        return {"content": shown_logprobs(tokens), "refusal": None}


def shown_logprobs(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """As chats and responses show them."""

    def entry(token: str, raw: bytes, logprob: float) -> dict[str, Any]:
        return {"token": token, "logprob": logprob, "bytes": list(raw)}

    return [
        {
            **entry(each.token, each.raw, each.logprob),
            "top_logprobs": [entry(top.token, top.raw, top.logprob) for top in each.top],
        }
        for each in tokens
    ]


class BatchChatShape(ChatShape):
    """/v1/chat/completions/batch."""

    def show_prompt(self, body: dict[str, Any], choice: dict[str, Any], token_ids: list[int]) -> None:
        choice["prompt_token_ids"] = token_ids


def _by_name(token: TokenLogprob) -> dict[str, float]:
    """A position's logprobs by the tokens' texts; by id where a text is taken. The sampled token's is always among them, as
    OpenAI's and vLLM's."""
    named = {token.token: token.logprob}
    for each in token.top:
        if each.id != token.id:
            named[f"token_id:{each.id}" if each.token in named else each.token] = each.logprob
    return named


def _reasoning(delta: Delta) -> dict[str, Any]:
    """Under the name of RTP-LLM, DeepSeek and SGLang, and of vLLM."""
    return {"reasoning_content": delta.reasoning, "reasoning": delta.reasoning} if delta.reasoning else {}


def _grown_call(call: ToolCall) -> dict[str, Any]:
    """A call that begins has id and name; what follows is more of its arguments."""
    if call.name:
        return {"index": call.index, **_tool_call(call)}
    return {"index": call.index, "function": {"arguments": call.arguments}}


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


Shape = CompletionShape | ChatShape
DONE = b"data: [DONE]\n\n"


class OpenAiWriter:
    """Writer of OpenAI's shapes."""

    def __init__(self, shape: Shape, model: str, question: Question) -> None:
        self.id = shape.id_prefix + uuid.uuid4().hex
        self._shape = shape
        self._question = question
        self._model = model
        self._created = int(time.time())
        self._opened: set[int] = set()

    def whole(self, answers: Answers, choices: Sequence[Sequence[Delta]]) -> bytes:
        shape = self._shape.whole_choice
        made = [self._choice(answers, shape, index, joined(each)) for index, each in enumerate(choices)]
        body = {**self._head(self._shape.whole_object), "choices": made, "usage": answers.usage.body()}
        if self._question.return_token_ids:
            for index, choice in enumerate(made):
                self._shape.show_prompt(body, choice, answers.prompt_token_ids(index))
        return json_of(body)

    def events_of(self, answers: Answers, index: int, delta: Delta) -> Iterator[bytes]:
        first = index not in self._opened
        if first:
            self._opened.add(index)
            opening = self._shape.first_chunk(index)
            if opening is not None:
                yield self._chunk(answers, index, opening, first=True)
                first = False
        shows_tokens = self._question.return_token_ids and delta.token_ids
        if delta.text or delta.finish_reason or delta.logprobs or delta.tool_calls or delta.reasoning or shows_tokens:
            choice = self._choice(answers, self._shape.delta_choice, index, delta)
            yield self._chunk(answers, index, choice, first=first)

    def last_events(self, answers: Answers) -> Iterator[bytes]:
        if self._question.include_usage:
            yield event({**self._head(self._shape.chunk_object), "choices": [], "usage": answers.usage.body()})
        yield DONE

    def failed(self, error: Exception) -> Iterator[bytes]:
        yield event(error_body(error)[1])
        yield DONE

    def _choice(
        self, answers: Answers, shape: Callable[[int, Delta, bool], dict[str, Any]], index: int, delta: Delta
    ) -> dict[str, Any]:
        made = shape(index, delta, answers.logprobs)
        return {**made, "token_ids": list(delta.token_ids)} if self._question.return_token_ids else made

    def _chunk(self, answers: Answers, index: int, choice: dict[str, Any], *, first: bool) -> bytes:
        body = {**self._head(self._shape.chunk_object), "choices": [choice]}
        if self._question.include_usage:
            body["usage"] = answers.usage.body() if self._question.continuous_usage else None
        if first and self._question.return_token_ids:
            self._shape.show_prompt(body, choice, answers.prompt_token_ids(index))
        return event(body)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self._created, "model": self._model}


def error_body(error: Exception, status: int | None = None) -> tuple[int, dict[str, Any]]:
    """HTTP status and OpenAI's error object. An error that is not ours is internal; its text stays in the log."""
    if not isinstance(error, RtpLlmError):
        return 500, error_object(500, "internal error")
    status = status or error.http_status
    param = error.param if isinstance(error, InvalidRequestError) else None
    code = error.code if isinstance(error, InvalidRequestError) else None
    return status, error_object(status, error.message, param, code)


def error_object(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error object. `code`: OpenAI's, where it has one for this error; else the status."""
    kind = ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code or status}}


COMPLETIONS = Form("completions", partial(OpenAiWriter, CompletionShape()), error_body)
CHATS = Form("chat_completions", partial(OpenAiWriter, ChatShape()), error_body)
BATCHES = Form("chat_completions_batch", partial(OpenAiWriter, BatchChatShape()), error_body)
