"""RequestAccount: what is known of the HTTP request that is being handled, for its line in the access log. All tasks that
handle it know it."""

from __future__ import annotations

import json
import logging
import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from rtp_llm.tracing import Traced

log = logging.getLogger("rtp_llm.access")

MAX_ID_CHARS = 128
MAX_ANSWERS = 16  # in one line
MAX_ERROR_CHARS = 200


@dataclass
class AnswerAccount:
    """One answer. Times are time.monotonic() (uvloop's own clock counts milliseconds); what never came has none."""

    arrived: float  # the HTTP request
    number: tuple[int, int] = (0, 0)  # of request and choice: in this order choices stand in the response
    prompt_tokens: int = 0
    asked: float | None = None  # of the dispatcher: a prompt's later choices wait for its first one's first token
    key: str = ""  # of the last attempt, as workers name it in their logs
    workers: list[list[str]] = field(default_factory=list)  # an attempt each: S and R, or who runs it alone
    placed: float | None = None  # the last time before the first token
    at_worker: tuple[float, float] = (0.0, 0.0)  # seconds queued and computing, as the worker measured them
    first_token: float | None = None
    handed_over: float | None = None  # its KV is at R, whole, for the first time
    arrival: tuple[float, float] | None = None  # seconds that its KV was on the wire and verified, by R
    last_token: float | None = None
    tokens: int = 0
    cached_tokens: int = 0
    end: str = "cancelled"  # else a finish reason, or an error's type

    def to_first_token(self) -> dict[str, float]:
        """Seconds of each phase that it came to; with a first token they add up to its time since the arrival."""
        found: dict[str, float] = {}
        if self.asked is not None:
            found["prepare"] = self.asked - self.arrived
            if self.placed is not None:
                found["queue"] = self.placed - self.asked
                if self.first_token is not None:
                    away = self.first_token - self.placed  # more than what its worker measured, if that is right
                    found["worker_queue"] = min(self.at_worker[0], away)
                    found["prefill"] = min(self.at_worker[1], away - found["worker_queue"])
                    found["first_token"] = away - found["worker_queue"] - found["prefill"]
        return found

    def of_handover(self) -> dict[str, float]:
        """Seconds until R had the KV, whole, and R's own, where it says them."""
        found: dict[str, float] = {}
        if self.handed_over is not None:
            found["handover"] = 0.0 if self.first_token is None else max(self.handed_over - self.first_token, 0.0)
            if self.arrival is not None:
                found["wire"], found["verify"] = self.arrival
        return found

    def phases(self) -> dict[str, float]:
        """Milliseconds, rounded to microseconds."""
        found = self.to_first_token()
        if self.first_token is not None and self.last_token is not None:
            found |= self.of_handover()
            found["decode"] = self.last_token - self.first_token
        return {name: round(seconds * 1e3, 3) for name, seconds in found.items()}

    def row(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "workers": self.workers,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "tokens": self.tokens,
            "ms": self.phases(),
            "end": self.end,
        }


class RequestAccount:
    """`id`: the client's x-request-id where it is printable and short, else a new one."""

    def __init__(self, id: str, arrived: float) -> None:
        self.id = id if 0 < len(id) <= MAX_ID_CHARS and id.isascii() and id.isprintable() else uuid.uuid4().hex
        self.arrived = arrived
        self.tenant = ""  # the name of its API key, where keys are asked for
        self.trace_id = ""  # of the trace that it is part of, the client's or one begun here
        self.trace: Traced | None = None  # where spans are wanted
        self.answers: list[AnswerAccount] = []

    def answer(self, request: int = 0, choice: int = 0) -> AnswerAccount:
        """Of one more answer."""
        self.answers.append(AnswerAccount(self.arrived, (request, choice)))
        return self.answers[-1]

    def answer_of(self, request: int, choice: int) -> AnswerAccount | None:
        """None: it has not begun."""
        return next((each for each in self.answers if each.number == (request, choice)), None)

    def timings(self) -> list[dict[str, float]]:
        """Milliseconds by phase, an entry a choice in the order of the response."""
        return [{f"{name}_ms": ms for name, ms in each.phases().items()} for each in sorted(self.answers, key=_number)]

    def close(self, endpoint: str, status: int, error: str = "") -> None:
        """The request is over: one line."""
        if not log.isEnabledFor(logging.INFO):
            return
        now = time.monotonic()
        line = {"id": self.id, "endpoint": endpoint, "status": status, "ms": round((now - self.arrived) * 1e3, 3)}
        if self.tenant:
            line["tenant"] = self.tenant
        if self.trace_id:
            line["trace_id"] = self.trace_id
        if error:
            line["error"] = error[:MAX_ERROR_CHARS]
        line["answers"] = [answer.row() for answer in self.answers[:MAX_ANSWERS]]
        if len(self.answers) > MAX_ANSWERS:
            line["more_answers"] = len(self.answers) - MAX_ANSWERS
        log.info("%s", json.dumps(line, separators=(",", ":")))


def _number(answer: AnswerAccount) -> tuple[int, int]:
    return answer.number


_current: ContextVar[RequestAccount] = ContextVar("account")


def open_account(id: str = "") -> RequestAccount:
    """In the task that hears the request, before its body is read. `id`: the client's x-request-id, empty: none."""
    account = RequestAccount(id, time.monotonic())
    _current.set(account)
    return account


def current_account() -> RequestAccount:
    """That of the request that is handled here; one that nobody closes, begun now, where no HTTP request is behind it."""
    account = _current.get(None)
    return account if account is not None else RequestAccount("", time.monotonic())
