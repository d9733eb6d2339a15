"""Answers in the shape of OpenAI's /v1/responses: items, whole or as events."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, TypeAlias

from rtp_llm.model.answer_text import Delta, TokenLogprob, ToolCall
from rtp_llm.router.answers import Answers, Question
from rtp_llm.router.json_bytes import json_of, listed, with_fields
from rtp_llm.router.response_store import Item
from rtp_llm.router.responses import error_body, shown_logprobs
from rtp_llm.router.responses_body import new_id
from rtp_llm.router.usage import Usage
from rtp_llm.router.writer import Form, event_of

INCOMPLETE = {"length": "max_output_tokens", "abort": "abort"}  # finish reason → why
HELD_BYTES = 256  # beyond a text's own that are looked back through for its first token
ERROR_CODES = {429: "rate_limit_exceeded"}  # of OpenAI's; others are the server's
Event: TypeAlias = tuple[dict[str, Any], dict[str, bytes]]  # its fields, and those that are JSON already


class ResponsesWriter:
    """Writer of one response."""

    def __init__(self, model: str, question: Question) -> None:
        assert question.response is not None
        self.id = new_id("resp")
        self._model = model
        self._asked = question.response
        self._memory = question.memory
        self._created = int(time.time())
        self._number = 0  # of the next event
        self._items: list[_Item] = []
        self._open: _Item | None = None  # the last one, while it grows
        self._logprobs: list[TokenLogprob] = []  # of tokens whose text hasn't come
        self._finish = ""  # reason

    def whole(self, answers: Answers, choices: Sequence[Sequence[Delta]]) -> bytes:
        for delta in choices[0]:
            for _ in self._grown(delta):
                pass
        return self._finished(answers)[1]

    def events_of(self, answers: Answers, index: int, delta: Delta) -> Iterator[bytes]:
        yield from self._begun()
        for each in self._grown(delta):
            yield self._event(*each)

    def last_events(self, answers: Answers) -> Iterator[bytes]:
        status, body = self._finished(answers)
        yield self._event({"type": f"response.{status}"}, {"response": body})

    def failed(self, error: Exception) -> Iterator[bytes]:
        yield from self._begun()
        status, shown = error_body(error)
        code = ERROR_CODES.get(status, "server_error")
        told = {"code": code, "message": shown["error"]["message"]}
        for _ in self._close("incomplete"):
            pass  # the response says so
        body = self._with_output(self._head("failed", error=told), self._output)
        yield self._event({"type": "response.failed"}, {"response": body})

    def _begun(self) -> Iterator[bytes]:
        """Unless it has."""
        if not self._number:
            body = self._with_output(self._head("in_progress"), [])
            yield self._event({"type": "response.created"}, {"response": body})
            yield self._event({"type": "response.in_progress"}, {"response": body})

    def _grown(self, delta: Delta) -> Iterator[Event]:
        self._logprobs += delta.logprobs
        if delta.reasoning:
            if not isinstance(self._open, _Reasoning):
                yield from self._begin(_Reasoning(len(self._items)))
            yield self._opened.grown(delta.reasoning)
        if delta.text:
            if not isinstance(self._open, _Message):
                self._logprobs = _of_text(self._logprobs, delta.text)
                yield from self._begin(_Message(len(self._items)))
            yield self._opened.grown(delta.text, self._logprobs)
        for call in delta.tool_calls:
            if call.name:
                yield from self._begin(_Call(len(self._items), call))
            if call.arguments:
                yield self._opened.grown(call.arguments)
        if delta.reasoning or delta.text or delta.tool_calls:
            self._logprobs = []
        if delta.finish_reason is not None:
            self._finish = delta.finish_reason
            if not self._items:
                yield from self._begin(_Message(0))
            if self._logprobs and isinstance(self._open, _Message):
                yield self._open.grown("", self._logprobs)
            yield from self._close("incomplete" if self._finish in INCOMPLETE else "completed")

    @property
    def _opened(self) -> _Item:
        assert self._open is not None
        return self._open

    def _begin(self, item: _Item) -> Iterator[Event]:
        yield from self._close("completed")
        self._items.append(item)
        self._open = item
        yield from item.opened()

    def _close(self, status: str) -> Iterator[Event]:
        if self._open is not None:
            yield from self._open.closed(status)
            self._open = None

    def _finished(self, answers: Answers) -> tuple[str, bytes]:
        """Its status, and the body. It is kept, too."""
        reason = INCOMPLETE.get(self._finish)
        status = "completed" if reason is None else "incomplete"
        head = self._head(status, usage=answers.usage, incomplete=reason)
        output = self._output
        if self._keeps:
            assert self._memory is not None
            self._memory.keep(self.id, head, self._asked, output)
        return status, self._with_output(head, output)

    @property
    def _output(self) -> list[Item]:
        return [(item.id, item.shown()) for item in self._items]

    @staticmethod
    def _with_output(head: bytes, output: Sequence[Item]) -> bytes:
        return with_fields(head, output=listed(text for _, text in output))

    @property
    def _keeps(self) -> bool:
        return self._asked.store and self._memory is not None and self._memory.keeps

    def _head(
        self,
        status: str,
        *,
        usage: Usage | None = None,
        incomplete: str | None = None,
        error: dict[str, Any] | None = None,
    ) -> bytes:
        """All but the output."""
        head = {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "model": self._model,
            "error": error,
            "incomplete_details": None if incomplete is None else {"reason": incomplete},
            "store": self._keeps,
            "usage": None if usage is None else _usage(usage),
        }
        return json_of(head)[:-1] + b"," + self._asked.shown[1:]

    def _event(self, body: dict[str, Any], encoded: dict[str, bytes]) -> bytes:
        text = with_fields(json_of({**body, "sequence_number": self._number}), **encoded)
        self._number += 1
        return event_of(text, body["type"])


class _Item:
    """Of the output, while it grows and after."""

    prefix: ClassVar[str]  # of its id
    stem: ClassVar[str]  # of the events by which it grows
    field: ClassVar[str] = "text"  # which the last of them has whole
    has_parts: ClassVar[bool] = True

    def __init__(self, index: int) -> None:
        self.id = new_id(self.prefix)
        self._index = index
        self._status = "in_progress"
        self._pieces: list[str] = []

    def opened(self) -> Iterator[Event]:
        yield {"type": "response.output_item.added", "output_index": self._index}, {"item": self.shown()}
        if self.has_parts:
            yield {"type": "response.content_part.added", **self._place}, {"part": self._part("")}

    def grown(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> Event:
        self._pieces.append(text)
        return {"type": f"{self.stem}.delta", **self._place, "delta": text}, {}

    def closed(self, status: str) -> Iterator[Event]:
        self._status = status
        yield self._done()
        if self.has_parts:
            yield {"type": "response.content_part.done", **self._place}, {"part": self._part(self._text)}
        yield {"type": "response.output_item.done", "output_index": self._index}, {"item": self.shown()}

    def shown(self) -> bytes:
        raise NotImplementedError

    def _done(self) -> Event:
        return {"type": f"{self.stem}.done", **self._place, self.field: self._text}, {}

    @property
    def _text(self) -> str:
        return "".join(self._pieces)

    @property
    def _place(self) -> dict[str, Any]:
        place = {"item_id": self.id, "output_index": self._index}
        return {**place, "content_index": 0} if self.has_parts else place

    def _with_content(self, head: dict[str, Any]) -> bytes:
        """No part before it grows."""
        empty = not self._pieces and self._status == "in_progress"
        return with_fields(json_of(head), content=listed([] if empty else [self._part(self._text)]))

    def _part(self, text: str) -> bytes:
        raise NotImplementedError


class _Reasoning(_Item):
    prefix = "rs"
    stem = "response.reasoning_text"

    def shown(self) -> bytes:
        return self._with_content({"id": self.id, "type": "reasoning", "status": self._status, "summary": []})

    def _part(self, text: str) -> bytes:
        return json_of({"type": "reasoning_text", "text": text})


class _Message(_Item):
    prefix = "msg"
    stem = "response.output_text"

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._logprobs: list[bytes] = []  # of each token

    def grown(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> Event:
        body, _ = super().grown(text)
        encoded = [json_of(each) for each in shown_logprobs(logprobs)]
        self._logprobs += encoded
        return body, {"logprobs": listed(encoded)}

    def shown(self) -> bytes:
        return self._with_content({"id": self.id, "type": "message", "status": self._status, "role": "assistant"})

    def _done(self) -> Event:
        body, _ = super()._done()
        return body, {"logprobs": listed(self._logprobs)}

    def _part(self, text: str) -> bytes:
        head = {"type": "output_text", "text": text, "annotations": []}
        return with_fields(json_of(head), logprobs=listed(self._logprobs))


class _Call(_Item):
    prefix = "fc"
    stem = "response.function_call_arguments"
    field = "arguments"
    has_parts = False

    def __init__(self, index: int, call: ToolCall) -> None:
        super().__init__(index)
        self._call = call

    def shown(self) -> bytes:
        head = {"id": self.id, "type": "function_call", "status": self._status}
        return json_of({**head, "call_id": self._call.id, "name": self._call.name, "arguments": self._text})


def _of_text(tokens: list[TokenLogprob], text: str) -> list[TokenLogprob]:
    """The last of them, which a message begins with: those before end what the model thought."""
    wanted, shown = text.encode(), b""
    for number, token in enumerate(reversed(tokens), 1):
        shown = token.raw + shown
        if wanted in shown or len(shown) > len(wanted) + HELD_BYTES:
            return tokens[-number:]
    return tokens


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        **({} if usage.timings is None else {"timings": usage.timings}),
    }


RESPONSES = Form("responses", ResponsesWriter, error_body)
