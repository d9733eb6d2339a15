"""Request, SamplingParams, TokenOutput: what is asked and what streams back."""

from __future__ import annotations

import enum
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rtp_llm.errors import EngineError, InvalidRequestError

MAX_TOKENS = 2**31 - 1
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_TOKEN_IDS = 128
MAX_SUPPRESSED_TOKENS = 32  # EOS ids and stop_token_ids that min_tokens may hold back
MAX_CHOICES = 128
MAX_FLOAT32 = (2 - 2**-23) * 2.0**127  # what workers take and compute
MIN_FLOAT32 = 2.0**-126  # the least normal number


class FinishReason(enum.IntEnum):
    """Why an answer ended. Values are the wire's and the engine's."""

    NONE = 0
    STOP = 1
    LENGTH = 2
    CANCELLED = 3  # nobody waits for it: an answer that ends so is an error
    FAILED = 4  # no token could be sampled at this position: no logit that may come is a number


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen; vLLM's names and defaults.

    `top_k` 0 or -1 is off. `temperature` 0 is greedy, and so is any below 1e-5. `seed` None draws one per request.
    `logprobs` n asks for the sampled token's and the n highest. `stop` are strings, `stop_token_ids` end the answer besides
    the model's EOS ids; within the first `min_tokens` tokens none of them does.

    Raises:
        InvalidRequestError: a value is out of range; names field and value.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        object.__setattr__(self, "stop", _listed("stop", stop))
        object.__setattr__(self, "stop_token_ids", _listed("stop_token_ids", self.stop_token_ids))
        self._validate()

    @property
    def stop_strings(self) -> list[str]:
        return list(self.stop or [])

    def with_seed(self) -> SamplingParams:
        """These parameters with a seed: the given one, or 63 random bits."""
        return self if self.seed is not None else replace(self, seed=secrets.randbits(63))

    def _validate(self) -> None:
        check_integer("n", self.n, 1, MAX_CHOICES)
        _number("temperature", self.temperature, 0.0, MAX_FLOAT32)
        _number("top_p", self.top_p, MIN_FLOAT32, 1.0)
        check_integer("top_k", self.top_k, -1, 2**31 - 1)
        _number("min_p", self.min_p, 0.0, 1.0)
        if self.seed is not None:
            check_integer("seed", self.seed, -(2**63), 2**64 - 1)
        if self.max_tokens is not None:
            check_integer("max_tokens", self.max_tokens, 1, MAX_TOKENS)
        check_integer("min_tokens", self.min_tokens, 0, MAX_TOKENS)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens {self.min_tokens} is greater than max_tokens {self.max_tokens}",
                param="min_tokens",
                value=self.min_tokens,
            )
        if self.logprobs is not None:
            check_integer("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        for name in ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens"):
            _flag(name, getattr(self, name))
        _stop_strings(self.stop_strings)
        _stop_token_ids(self.stop_token_ids or [])


@dataclass(frozen=True, kw_only=True)
class Request:
    """One answer that is wanted: a prompt in token ids, sampling with a seed, and which of its n choices this is."""

    request_id: str
    prompt: Sequence[int]
    sampling: SamplingParams
    choice: int = 0
    output: Sequence[int] = ()  # tokens so far: a retry or a resume
    cache_salt: str = ""  # adapter, media


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


def check_integer(name: str, value: object, low: int, high: int) -> None:
    """
    Raises:
        InvalidRequestError: `value` is no integer from `low` to `high`; names it `name`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequestError(
            f"{name} must be an integer from {low} to {high}, got {value!r}", param=name, value=value
        )


def _number(name: str, value: object, low: float, high: float) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not low <= value <= high:  # type: ignore[operator]
        raise InvalidRequestError(
            f"{name} must be a number from {low:g} to {high:g}, got {value!r}", param=name, value=value
        )


def _flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidRequestError(f"{name} must be true or false, got {value!r}", param=name, value=value)


def _listed(name: str, value: Iterable[object] | None) -> list[object]:
    if not isinstance(value, Iterable | None) or isinstance(value, str | bytes | Mapping):
        raise InvalidRequestError(f"{name} must be a list, got {value!r}", param=name, value=value)
    return list(value or [])


def _stop_token_ids(tokens: Sequence[object]) -> None:
    if len(tokens) > MAX_STOP_TOKEN_IDS:
        raise InvalidRequestError(
            f"stop_token_ids has {len(tokens)} entries, at most {MAX_STOP_TOKEN_IDS} are allowed",
            param="stop_token_ids",
            value=len(tokens),
        )
    for token in tokens:
        check_integer("stop_token_ids", token, 0, 2**31 - 1)


def _stop_strings(stop: Sequence[object]) -> None:
    if len(stop) > MAX_STOP_STRINGS:
        raise InvalidRequestError(
            f"stop has {len(stop)} strings, at most {MAX_STOP_STRINGS} are allowed", param="stop", value=len(stop)
        )
    for text in stop:
        if not isinstance(text, str) or not text:
            raise InvalidRequestError(f"stop must hold non-empty strings, got {text!r}", param="stop", value=text)
