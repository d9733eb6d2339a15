"""Writer: how one endpoint writes one response, whole or as events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from rtp_llm.model.answer_text import Delta
from rtp_llm.router.answers import Answers, Question
from rtp_llm.router.json_bytes import json_of

PING = b": ping\n\n"


class Writer(Protocol):
    """Of one response."""

    @property
    def id(self) -> str: ...

    def whole(self, answers: Answers, choices: Sequence[Sequence[Delta]]) -> bytes:
        """The body, JSON. `choices`: what each answer grew by."""

    def events_of(self, answers: Answers, index: int, delta: Delta) -> Iterator[bytes]:
        """Of a stream: what answer `index` grew by."""

    def last_events(self, answers: Answers) -> Iterator[bytes]:
        """When all answers are whole."""

    def failed(self, error: Exception) -> Iterator[bytes]:
        """When one is not; the stream ends with it."""


ErrorBody: TypeAlias = Callable[[Exception], tuple[int, dict[str, Any]]]  # (HTTP status, body) of an error


@dataclass(frozen=True)
class Form:
    """How an endpoint writes."""

    endpoint: str  # its name in metrics and logs
    writer: Callable[[str, Question], Writer]  # of a response; the model's name
    error_body: ErrorBody


def event(body: dict[str, Any], name: str = "") -> bytes:
    return event_of(json_of(body), name)


def event_of(text: bytes, name: str = "") -> bytes:
    """`text`: its JSON."""
    head = f"event: {name}\ndata: ".encode() if name else b"data: "
    return head + text + b"\n\n"
