"""Answers in the shape of RTP-LLM's raw requests: `response`, `finished`, `aux_info`, whole or as events that each hold all of
them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rtp_llm.errors import (
    DeadlineError,
    InvalidRequestError,
    OverloadedError,
    PromptTooLongError,
    SuspectError,
    UnavailableError,
    UnsupportedFieldError,
    WorkerLostError,
)
from rtp_llm.model.answer_text import Delta
from rtp_llm.router import responses
from rtp_llm.router.account import AnswerAccount, current_account
from rtp_llm.router.answers import Answers, Question
from rtp_llm.router.json_bytes import json_of
from rtp_llm.router.raw_body import NoPromptError
from rtp_llm.router.writer import Form

# The first that an error is. Source: rtp_llm/config/exceptions.py of RTP-LLM.
ERROR_CODES: tuple[tuple[type[Exception], int, str], ...] = (
    (NoPromptError, 509, "NO_PROMPT_ERROR"),
    (PromptTooLongError, 511, "LONG_PROMPT_ERROR"),
    (UnsupportedFieldError, 515, "UNSUPPORTED_OPERATION"),
    (InvalidRequestError, 507, "ERROR_INPUT_FORMAT_ERROR"),
    (OverloadedError, 409, "CONCURRENCY_LIMIT_ERROR"),
    (DeadlineError, 603, "GENERATE_TIMEOUT"),
    (UnavailableError, 8400, "MASTER_NO_AVAILABLE_WORKER"),
    (WorkerLostError, 606, "EXECUTION_EXCEPTION"),
    (SuspectError, 606, "EXECUTION_EXCEPTION"),
    (Exception, 514, "UNKNOWN_ERROR"),
)


REPEATED_CHARS = 64 << 10  # of all answers in an event that is due at every step
LEAST_GROWTH = 0.01  # of a larger one


@dataclass
class _Answer:
    """One answer as far as it is there."""

    prompt_tokens: int
    account: AnswerAccount
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    num_tokens: int = 0
    shown_chars: int = 0  # of an earlier event
    shown_tokens: int = 0
    ended: float | None = None  # time.monotonic()

    def grow(self, delta: Delta) -> None:
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.num_tokens += delta.num_tokens
        if delta.finish_reason is not None:
            self.ended = time.monotonic()

    def shown(self) -> None:
        self.shown_chars, self.shown_tokens = len(self.text), self.num_tokens

    def aux_info(self) -> dict[str, Any]:
        """Lengths in tokens, times in milliseconds. No KV comes from elsewhere than the cache of who computes the prompt."""
        account = self.account
        phases = account.to_first_token()
        reused = min(account.cached_tokens, self.prompt_tokens)
        until_first = None if account.first_token is None else account.first_token - account.arrived
        return {
            "cost_time": _ms((self.ended or time.monotonic()) - account.arrived),
            "iter_count": self.num_tokens,
            "input_len": self.prompt_tokens,
            "prefix_len": 0,
            "output_len": self.num_tokens,
            "step_output_len": self.num_tokens - self.shown_tokens,
            "wait_time": _ms(phases.get("queue", 0.0) + phases.get("worker_queue", 0.0)),
            "first_token_cost_time": _ms(until_first or 0.0),
            "pd_sep": bool(account.workers) and len(account.workers[-1]) > 1,
            "reuse_len": reused,
            "local_reuse_len": reused,
            "remote_reuse_len": 0,
            "memory_reuse_len": 0,
            "prefill_total_reuse_len": reused,
            "prefill_local_reuse_len": reused,
            "prefill_remote_reuse_len": 0,
            "prefill_memory_reuse_len": 0,
        }


class RawWriter:
    """Writer of one response. An event of several answers is due when each that goes on has grown since the last one, or one
    grows for the second time; one that repeats much, when it has grown by a part of that."""

    def __init__(self, model: str, question: Question) -> None:
        assert question.raw is not None
        self.id = f"raw-{uuid.uuid4().hex}"
        self._wanted = question.raw
        self._said: dict[int, _Answer] = {}  # by index
        self._unfinished = set(range(sum(prompt.num_choices for prompt in question.prompts)))
        self._waited_for = set(self._unfinished)  # not grown since the last event
        self._chars = self._shown_chars = 0  # of all answers; of those in the last event

    def whole(self, answers: Answers, choices: Sequence[Sequence[Delta]]) -> bytes:
        for index, deltas in enumerate(choices):
            for delta in deltas:
                self._answer(answers, index).grow(delta)
        self._unfinished.clear()
        return json_of(self._body(answers))

    def events_of(self, answers: Answers, index: int, delta: Delta) -> Iterator[bytes]:
        if index not in self._waited_for and self._is_due():
            yield self._event(answers)
        answer = self._answer(answers, index)
        answer.grow(delta)
        self._chars += len(delta.text)
        self._waited_for.discard(index)
        if answer.ended is not None:
            self._unfinished.discard(index)
            yield self._event(answers)
        elif not self._waited_for and self._is_due():
            yield self._event(answers)

    def _is_due(self) -> bool:
        """An answer is not repeated at each of its tokens once it is long: all of it would be its square."""
        if self._wanted.incremental:
            return True
        return self._chars <= REPEATED_CHARS or self._chars - self._shown_chars >= LEAST_GROWTH * self._chars

    def last_events(self, answers: Answers) -> Iterator[bytes]:
        if self._wanted.announces_end:
            yield b"data:[done]\r\n\r\n"

    def failed(self, error: Exception) -> Iterator[bytes]:
        yield self._data(error_body(error)[1])

    def _answer(self, answers: Answers, index: int) -> _Answer:
        if index not in self._said:
            prompt, choice = answers.indices[index]
            asked = answers.prompts[prompt]
            account = current_account().answer_of(asked.number, choice)
            assert account is not None
            self._said[index] = _Answer(asked.num_tokens, account)
        return self._said[index]

    def _event(self, answers: Answers) -> bytes:
        body = self._body(answers)
        self._waited_for = set(self._unfinished)
        self._shown_chars = self._chars
        for each in self._said.values():
            each.shown()
        return self._data(body)

    def _data(self, body: dict[str, Any]) -> bytes:
        head = b"data:" if self._wanted.announces_end else b"data: "
        return head + json_of(body) + b"\r\n\r\n"

    def _body(self, answers: Answers) -> dict[str, Any]:
        by_prompt: list[list[int]] = [[] for _ in answers.prompts]
        for index, (prompt, _) in enumerate(answers.indices):
            by_prompt[prompt].append(index)
        made = [self._of_prompt(answers, indices) for indices in by_prompt]
        return {"response_batch": made} if self._wanted.batch else made[0]

    def _of_prompt(self, answers: Answers, indices: Sequence[int]) -> dict[str, Any]:
        def each(of: Callable[[_Answer], Any], nothing: Any) -> Any:
            """Of each answer, or of the only one."""
            made = [of(self._said[index]) if index in self._said else nothing for index in indices]
            return made if self._wanted.sequences else made[0]

        anew = not self._wanted.incremental
        body = {
            "response": each(lambda answer: answer.text[0 if anew else answer.shown_chars :], ""),
            "finished": self._unfinished.isdisjoint(indices),
            "aux_info": each(_Answer.aux_info, {}) if self._wanted.aux_info else [] if self._wanted.sequences else {},
        }
        if self._wanted.output_ids:
            said = (self._said[index] for index in indices if index in self._said)
            body["output_ids"] = [answer.token_ids[0 if anew else answer.shown_tokens :] for answer in said]
        if self._wanted.input_ids:
            body["input_ids"] = [answers.prompt_token_ids(indices[0])]
        return body


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


def error_body(error: Exception) -> tuple[int, dict[str, Any]]:
    """HTTP status and RTP-LLM's error: what OpenAI's says, by other codes."""
    status, body = responses.error_body(error)
    code, name = next((code, name) for kind, code, name in ERROR_CODES if isinstance(error, kind))
    return status, {"error_code": code, "error_code_str": f"{code}_{name}", "message": body["error"]["message"]}


RAW = Form("raw", RawWriter, error_body)
BATCH_INFER = Form("batch_infer", RawWriter, error_body)
