"""Request, TokenOutput: what is asked and what streams back."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from rtp_llm.errors import EngineError
from rtp_llm.sampling_params import Integer, SamplingParams

PRIORITY = Integer(-(2**31), 2**31 - 1)  # vLLM's: the least value goes first


class FinishReason(enum.IntEnum):
    """Why an answer ended. Values are the wire's and the engine's."""

    NONE = 0
    STOP = 1
    LENGTH = 2
    CANCELLED = 3  # nobody waits for it: an answer that ends so is an error
    FAILED = 4  # no token could be sampled at this position: no logit that may come is a number


@dataclass(frozen=True, kw_only=True)
class Request:
    """One answer that is wanted: a prompt in token ids, sampling with a seed, and which of its n choices this is."""

    request_id: str
    prompt: Sequence[int]
    sampling: SamplingParams
    choice: int = 0
    output: Sequence[int] = ()  # tokens so far: a retry or a resume
    cache_salt: str = ""  # adapter, media
    priority: int = 0  # the least is served first and preempted last
    traceparent: str = ""  # W3C Trace Context of the span that asks for it; empty: nobody records this request
    tracestate: str = ""


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """One sampled token. `position` counts output tokens from 0; `logprob` is None when not asked for. Where the finish
    reason is FAILED there is none, and `token` is -1."""

    position: int
    token: int
    logprob: float | None = None
    top_logprobs: Sequence[tuple[int, float]] = field(default=())
    finish_reason: FinishReason = FinishReason.NONE
    num_cached_tokens: int = 0  # prompt tokens that were prefix hits, with the first output
    times: tuple[float, float] | None = None  # with the first one: seconds queued at the worker, and computed

    def check(self) -> None:
        """
        Raises:
            EngineError: as `error` says.
        """
        if (error := self.error) is not None:
            raise error

    @property
    def error(self) -> EngineError | None:
        """Why this is no token: the engine cancelled the answer unasked, or none of the logits was a number."""
        if self.finish_reason is FinishReason.CANCELLED:
            return EngineError(f"the answer was cancelled by its engine at token {self.position}")
        if self.finish_reason is FinishReason.FAILED:
            return EngineError(f"no token could be sampled at position {self.position}: no logit is a number")
        return None
