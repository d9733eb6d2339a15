"""SamplingParams: how the tokens of an answer are chosen.

A field is written once in Python, here. HTTP bodies, the defaults of a model's generation_config.json, the wire's message and
the engine's arguments are derived from `FIELDS`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Protocol

from rtp_llm.errors import InvalidRequestError, UnsupportedFieldError, shortened

MAX_TOKENS = 2**31 - 1
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1000  # of one string: what is held back where it begins is looked through at each token
MAX_STOP_TOKEN_IDS = 128
MAX_ALLOWED_TOKEN_IDS = 65_536
MAX_LOGIT_BIASES = 1024
MAX_SUPPRESSED_TOKENS = 32  # EOS ids and stop_token_ids that min_tokens may hold back
MAX_CHOICES = 128
MAX_FLOAT32 = (2 - 2**-23) * 2.0**127  # what workers take and compute
MIN_FLOAT32 = 2.0**-126  # the least normal number
UINT64 = 2**64 - 1


class Domain(Protocol):
    """The values that a field may have."""

    def take(self, name: str, value: Any) -> Any:
        """`value` as SamplingParams holds it.

        Raises:
            InvalidRequestError: it isn't in the domain; names `name` and the value.
        """


@dataclass(frozen=True)
class Integer:
    low: int
    high: int

    def take(self, name: str, value: Any) -> int:
        value = whole(value)
        if isinstance(value, bool) or not isinstance(value, int) or not self.low <= value <= self.high:
            raise _refused(name, value, f"an integer from {self.low} to {self.high}")
        return value


@dataclass(frozen=True)
class Number:
    low: float
    high: float

    def take(self, name: str, value: Any) -> float:
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not self.low <= value <= self.high:
            raise _refused(name, value, f"a number from {self.low:g} to {self.high:g}")
        return value  # type: ignore[no-any-return]


def whole(value: Any) -> Any:
    """A float that is an integer as that integer, as JSON Schema has it: clients in Lua, R or MATLAB send 4.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold it: no half of a character is in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class OrElse:
    """Of `domain`, or `value`, which stands for something else."""

    value: int
    domain: Domain

    def take(self, name: str, value: Any) -> Any:
        number = whole(value)
        is_it = isinstance(number, int) and not isinstance(number, bool) and number == self.value
        return self.value if is_it else self.domain.take(name, value)


@dataclass(frozen=True)
class Choice:
    texts: tuple[str, ...]

    def take(self, name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in self.texts:
            raise _refused(name, value, " or ".join(self.texts))
        return value


class Flag:
    def take(self, name: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise _refused(name, value, "true or false")
        return value


@dataclass(frozen=True)
class Optional:
    """Of `domain`, or None."""

    domain: Domain

    def take(self, name: str, value: Any) -> Any:
        return None if value is None else self.domain.take(name, value)


@dataclass(frozen=True)
class Texts:
    """A text or several; none of them empty or of more than `longest` characters."""

    most: int
    longest: int

    def take(self, name: str, value: Any) -> list[str]:
        texts = [value] if isinstance(value, str) else _listed(name, value)
        if len(texts) > self.most:
            raise InvalidRequestError(
                f"{name} has {len(texts)} strings, at most {self.most} are allowed", param=name, value=len(texts)
            )
        for text in texts:
            if not isinstance(text, str) or not text:
                raise InvalidRequestError(
                    f"{name} must hold non-empty strings, got {shortened(text)}", param=name, value=text
                )
            if not is_unicode(text[: self.longest]):
                raise InvalidRequestError(
                    f"{name} must hold valid Unicode, got {shortened(text)}", param=name, value=text
                )
            if len(text) > self.longest:
                raise InvalidRequestError(
                    f"{name} has a string of {len(text)} characters, at most {self.longest} are allowed",
                    param=name,
                    value=len(text),
                )
        return texts


@dataclass(frozen=True)
class TokenIds:
    most: int
    least: int = 0

    def take(self, name: str, value: Any) -> list[int]:
        tokens = _listed(name, value)
        if len(tokens) < self.least:
            raise InvalidRequestError(f"{name} must have an entry, got {shortened(tokens)}", param=name, value=tokens)
        if len(tokens) > self.most:
            raise InvalidRequestError(
                f"{name} has {len(tokens)} entries, at most {self.most} are allowed", param=name, value=len(tokens)
            )
        return [TOKEN_ID.take(name, token) for token in tokens]


@dataclass(frozen=True)
class TokenNumbers:
    """Numbers by token id; in JSON, whose names are texts, an id is its digits."""

    most: int
    number: Number

    def take(self, name: str, value: Any) -> dict[int, float]:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise _refused(name, value, "an object of numbers by token id")
        if len(value) > self.most:
            raise InvalidRequestError(
                f"{name} has {len(value)} entries, at most {self.most} are allowed", param=name, value=len(value)
            )
        taken: dict[int, float] = {}
        for key, number in value.items():
            try:
                token = TOKEN_ID.take(f"{name}: a token id", _digits(key))
                if token in taken:
                    raise _refused(name, key, "an object that names each token id once")
                taken[token] = self.number.take(f"{name} of token {token}", number)
            except InvalidRequestError as error:
                raise InvalidRequestError(error.message, param=name, value=error.value) from None
        return taken


def _digits(key: Any) -> Any:
    return int(key) if isinstance(key, str) and len(key) <= 10 and key.isascii() and key.isdigit() else key


@dataclass(frozen=True)
class Only:
    """Values that ask for nothing: the field is known, no other value is computed. The first is the default."""

    values: tuple[Any, ...]

    def take(self, name: str, value: Any) -> Any:
        if value is not None and not is_among(value, self.values):
            raise UnsupportedFieldError(f"{name} is not supported, got {shortened(value)}", param=name, value=value)
        return self.values[0]


TOKEN_ID = Integer(0, 2**31 - 1)


@dataclass(frozen=True)
class SamplingField:
    """What else is known of a field of SamplingParams.

    `engine`: its value as the wire's message and the native SamplingParams hold it, under the same name; None: the router's
    own, no engine is told. `from_model`: generation_config.json may give its default. `since`: the version of the protocol
    that can say it (rtp_llm/wire/versions.py).
    """

    domain: Domain
    engine: Callable[[Any], Any] | None = None
    from_model: bool = False
    since: int = 1


def is_among(value: Any, values: Iterable[Any]) -> bool:
    """Whether `value` equals one of `values`, which JSON can hold; whatever else it is, an array as well, does not."""
    kinds = ((each, int | float if isinstance(each, int | float) else type(each)) for each in values)
    return any(isinstance(value, kind) and value == each for each, kind in kinds)


def same(value: Any) -> Any:
    return value


def param(
    default: Any,
    domain: Domain,
    *,
    engine: Callable[[Any], Any] | None = None,
    from_model: bool = False,
    since: int = 1,
) -> Any:
    return field(default=default, metadata={"sampling": SamplingField(domain, engine, from_model, since)})


def only(*values: Any) -> Any:
    """A field of vLLM's SamplingParams that isn't computed yet; its default is the first of `values`."""
    return field(default=values[0], repr=False, metadata={"sampling": SamplingField(Only(values))})


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen; vLLM's names and defaults. What isn't computed is refused by name.

    `top_k` 0 or -1 is off. `temperature` 0 is greedy, and so is any below 1e-5. `seed` None draws one per request.
    `logprobs` n asks for the sampled token's and the n highest. `stop` are strings, `stop_token_ids` end the answer besides
    the model's EOS ids; within the first `min_tokens` tokens none of them does. No token but `allowed_token_ids` comes, and
    `logit_bias` is added to the logits of its tokens. `repetition_penalty` divides logits above 0 of tokens that prompt or
    answer have, and multiplies the others; `frequency_penalty` is taken off for each time that the answer has a token,
    `presence_penalty` if it has it at all. docs/numerics.md has the order. `truncate_prompt_tokens` k keeps the prompt's last k
    tokens, -1 as many as the context leaves beside max_tokens; with `truncation_side` "right" they are its first.

    Raises:
        InvalidRequestError: a value is out of range; names field and value.
    """

    n: int = param(1, Integer(1, MAX_CHOICES))
    temperature: float = param(1.0, Number(0.0, MAX_FLOAT32), engine=same, from_model=True)
    top_p: float = param(1.0, Number(MIN_FLOAT32, 1.0), engine=same, from_model=True)
    top_k: int = param(0, Integer(-1, 2**31 - 1), engine=lambda k: max(k, 0), from_model=True)
    min_p: float = param(0.0, Number(0.0, 1.0), engine=same, from_model=True)
    seed: int | None = param(None, Optional(Integer(-(2**63), UINT64)), engine=lambda seed: seed & UINT64)
    max_tokens: int | None = param(16, Optional(Integer(1, MAX_TOKENS)), engine=same)
    min_tokens: int = param(0, Integer(0, MAX_TOKENS), engine=same)
    stop: str | Sequence[str] | None = param(None, Texts(MAX_STOP_STRINGS, MAX_STOP_CHARS))
    stop_token_ids: Sequence[int] | None = param(None, TokenIds(MAX_STOP_TOKEN_IDS), engine=same)
    include_stop_str_in_output: bool = param(False, Flag())
    ignore_eos: bool = param(False, Flag(), engine=same)
    logprobs: int | None = param(None, Optional(Integer(0, MAX_LOGPROBS)), engine=lambda n: -1 if n is None else n)
    skip_special_tokens: bool = param(True, Flag())
    truncate_prompt_tokens: int | None = param(None, Optional(OrElse(-1, Integer(1, 2**63 - 1))))
    truncation_side: str | None = param(None, Optional(Choice(("left", "right"))))

    logit_bias: Mapping[int, float] | None = param(
        None, TokenNumbers(MAX_LOGIT_BIASES, Number(-100.0, 100.0)), engine=same, since=2
    )
    allowed_token_ids: Sequence[int] | None = param(
        None, Optional(TokenIds(MAX_ALLOWED_TOKEN_IDS, least=1)), engine=lambda ids: ids or [], since=2
    )
    repetition_penalty: float = param(
        1.0, Number(MIN_FLOAT32, MAX_FLOAT32), engine=lambda p: 0.0 if p == 1 else p, from_model=True, since=2
    )
    presence_penalty: float = param(0.0, Number(-2.0, 2.0), engine=same, since=2)
    frequency_penalty: float = param(0.0, Number(-2.0, 2.0), engine=same, since=2)

    bad_words: Any = only(None, [])
    prompt_logprobs: Any = only(None)
    logprob_token_ids: Any = only(None, [])
    flat_logprobs: bool = only(False)
    detokenize: bool = only(True)
    spaces_between_special_tokens: bool = only(True)
    logits_processors: Any = only(None, [])
    structured_outputs: Any = only(None)
    guided_decoding: Any = only(None)
    thinking_token_budget: Any = only(None)
    repetition_detection: Any = only(None)
    output_kind: Any = only(None, 0)  # RequestOutputKind.CUMULATIVE
    extra_args: Any = only(None, {})
    skip_reading_prefix_cache: Any = only(None, False)

    def __post_init__(self) -> None:
        for name, each in FIELDS.items():
            object.__setattr__(self, name, each.domain.take(name, getattr(self, name)))
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens {self.min_tokens} is greater than max_tokens {self.max_tokens}",
                param="min_tokens",
                value=self.min_tokens,
            )

    @property
    def stop_strings(self) -> list[str]:
        return list(self.stop or [])

    @property
    def protocol(self) -> int:
        """The oldest version of the protocol that can say all that is asked for."""
        return max((since for name, (neutral, since) in _ADDED.items() if getattr(self, name) != neutral), default=1)

    def truncated(self, prompt: Sequence[int], context: int) -> Sequence[int]:
        """What is kept of `prompt`: at least a token, at most what leaves one of `context` to the answer."""
        if self.truncate_prompt_tokens is None:
            return prompt
        kept = context - (self.max_tokens or 1) if self.truncate_prompt_tokens == -1 else self.truncate_prompt_tokens
        kept = max(min(kept, context - 1), 1)
        if len(prompt) <= kept:
            return prompt
        return prompt[:kept] if self.truncation_side == "right" else prompt[-kept:]

    def with_seed(self) -> SamplingParams:
        """These parameters with a seed: the given one, or 63 random bits."""
        return self if self.seed is not None else replace(self, seed=secrets.randbits(63))

    def complete(self, max_tokens: int) -> SamplingParams:
        """These parameters with a limit and a seed.

        Raises:
            InvalidRequestError: `min_tokens` is beyond the limit.
        """
        seed = secrets.randbits(63) if self.seed is None else self.seed
        return replace(self, max_tokens=max_tokens, seed=seed)

    def for_engine(self) -> dict[str, Any]:
        """What an engine is told, by the names that the wire's and the native SamplingParams have too.

        REQUIRES: seed and max_tokens are set.
        """
        return {name: each.engine(getattr(self, name)) for name, each in FIELDS.items() if each.engine is not None}


FIELDS: Mapping[str, SamplingField] = MappingProxyType(
    {each.name: each.metadata["sampling"] for each in fields(SamplingParams)}
)


def _listed(name: str, value: Any) -> list[Any]:
    if not isinstance(value, Iterable | None) or isinstance(value, str | bytes | Mapping):
        raise _refused(name, value, "a list")
    return [] if value is None else list(value)


def _refused(name: str, value: Any, wanted: str) -> InvalidRequestError:
    return InvalidRequestError(f"{name} must be {wanted}, got {shortened(value)}", param=name, value=value)


# What versions of the protocol have added: → the value that asks for nothing, the version.
_ADDED: Mapping[str, tuple[Any, int]] = MappingProxyType(
    {name: (getattr(SamplingParams(), name), each.since) for name, each in FIELDS.items() if each.since > 1}
)
