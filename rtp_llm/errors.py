"""Every exception of the package.

RtpLlmError
├── InvalidRequestError      the request can never work; names field and value (HTTP 400)
│   ├── UnsupportedFieldError  a field asks for what isn't computed here
│   ├── PromptTooLongError   more tokens than the model's context
│   └── ChatTemplateError    the messages don't fit the template, or the model has none
├── ModelError               the model's files can't be served
│   ├── UnsupportedModelError    an architecture or option that this engine doesn't compute
│   └── ModelLoadError           a file is missing, truncated or mis-shaped
├── ConfigError              a setting is wrong; names its path and value
├── ConflictError            another operation on the same thing is under way (HTTP 409)
├── OverloadedError          no room now, try again (HTTP 429)
│   └── DeadlineUnreachableError  the request's first token would come after its deadline
├── UnavailableError         no worker, device or library that could serve (HTTP 503)
│   ├── DeadlineError        the request ran out of time (HTTP 504)
│   └── AbortedError         the request was ended by who runs the server
├── WorkerLostError          the third worker was lost under one request (HTTP 500)
├── ProtocolError            a peer speaks another version or layout, or breaks the protocol
├── TaskError                a background task that must go on has ended (HTTP 500)
└── EngineError              the native engine broke an invariant of its own (HTTP 500)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

MAX_SHOWN = 200  # characters of a value in a message


def shortened(value: object) -> str:
    """`value` as a message shows it: its repr, cut. Costs what is shown, however large the value is."""
    text = ""
    for piece in _written(value):
        text += piece
        if len(text) > MAX_SHOWN:
            return text[:MAX_SHOWN] + "…"
    return text


def excerpt(text: str) -> str:
    """The beginning of `text` as a message quotes it, valid Unicode: what others write may hold all that a client sent."""
    begin = text[:MAX_SHOWN].encode(errors="backslashreplace").decode()
    return begin if len(text) <= MAX_SHOWN else begin + "…"


def _written(value: object) -> Iterator[str]:
    """repr(value) of what JSON can hold, piece by piece; each level of nesting yields before it goes deeper."""
    if isinstance(value, str):
        yield repr(value[: MAX_SHOWN + 1])
    elif isinstance(value, Mapping):
        yield "{"
        for number, (key, item) in enumerate(value.items()):
            yield ", " if number else ""
            yield from _written(key)
            yield ": "
            yield from _written(item)
        yield "}"
    elif isinstance(value, list):
        yield "["
        for number, item in enumerate(value):
            yield ", " if number else ""
            yield from _written(item)
        yield "]"
    else:
        yield repr(value)


class RtpLlmError(Exception):
    """Base of all errors of this package."""

    http_status = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidRequestError(RtpLlmError, ValueError):
    """A request can never work. `param` is the field as the caller wrote it, `value` what it held."""

    http_status = 400
    code: str | None = None  # OpenAI's word for it

    def __init__(self, message: str, *, param: str | None = None, value: Any = None) -> None:
        super().__init__(message)
        self.param = param
        self.value = value


class UnsupportedFieldError(InvalidRequestError):
    """A field asks for what this server doesn't compute."""


class PromptTooLongError(InvalidRequestError):
    """The prompt, or prompt and max_tokens, exceed the model's context."""

    code = "context_length_exceeded"


class ChatTemplateError(InvalidRequestError):
    """The messages don't fit the chat template, or the model has none."""


class ModelError(RtpLlmError):
    """The model's files can't be served."""


class UnsupportedModelError(ModelError):
    """An architecture or option that the engine doesn't compute."""


class ModelLoadError(ModelError):
    """A file is missing, truncated or mis-shaped; the message names file, tensor, expected and found."""


class ConfigError(RtpLlmError, ValueError):
    """A setting is wrong; the message names its path and value."""


class ConflictError(RtpLlmError):
    """Another operation on the same thing is under way."""

    http_status = 409


class OverloadedError(RtpLlmError):
    """No room now; the same request may work later."""

    http_status = 429


class DeadlineUnreachableError(OverloadedError):
    """The first token would come after the request's deadline. `retry_after_s`: until it would not; None: it always would."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnavailableError(RtpLlmError):
    """No worker, device or library that could serve this."""

    http_status = 503


class DeadlineError(UnavailableError):
    """The request ran out of time."""

    http_status = 504


class AbortedError(UnavailableError):
    """A request was ended by who runs the server: what is there of its answer is the answer."""


class WorkerLostError(RtpLlmError):
    """Three workers were lost under one request."""


class SuspectError(RtpLlmError):
    """Workers were lost while they ran the first steps of this request, the last one while it ran nothing else."""


class ProtocolError(RtpLlmError):
    """A peer speaks another version or layout, or breaks the protocol."""


class TaskError(RtpLlmError):
    """A background task that must go on has ended."""


class EngineError(RtpLlmError):
    """The native engine broke an invariant of its own."""
