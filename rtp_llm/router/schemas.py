"""Bodies of the OpenAI-style endpoints, and how they become `SamplingParams`.

Unknown fields are ignored. A known field is refused when it would change the answer and this server doesn't compute it, or when
it needs another field that isn't given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from rtp_llm.errors import InvalidRequestError
from rtp_llm.request import MAX_LOGPROBS, MAX_TOKENS, SamplingParams, check_integer

DEFAULT_MAX_TOKENS = 16  # of completions, as OpenAI's
SAME_IN_SAMPLING = (
    "n", "temperature", "top_p", "top_k", "min_p", "min_tokens", "seed", "stop", "stop_token_ids",
    "include_stop_str_in_output", "skip_special_tokens", "ignore_eos",
)  # fmt: skip
RESERVED_VARIABLES = frozenset(
    {"self", "messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize"}
)


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool | None = None


class _Body(BaseModel):
    """What both endpoints take. None means: not given."""

    model_config = ConfigDict(extra="ignore", strict=True)

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    ignore_eos: bool | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    response_format: dict[str, Any] | None = None
    user: str | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def limit_field(self) -> str | None:
        """The field that asks for a number of tokens, if one is given."""
        return None if self.max_tokens is None else "max_tokens"

    def _refuse_what_cannot_be_done(self) -> None:
        neutral = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}
        for name, value in neutral.items():
            _refuse(name, getattr(self, name), (None, value))
        _refuse("logit_bias", self.logit_bias, (None, {}))
        _refuse("response_format", self.response_format, (None, {"type": "text"}))
        if self.stream_options is not None and not self.stream:
            given = self.stream_options.model_dump(exclude_unset=True)
            raise InvalidRequestError(
                f"stream_options {_shortened(given)} needs stream: true", param="stream_options", value=given
            )

    def _sampling(self, defaults: Mapping[str, Any], max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        given = {name: getattr(self, name) for name in SAME_IN_SAMPLING if getattr(self, name) is not None}
        return SamplingParams(**{**defaults, **given}, max_tokens=max_tokens, logprobs=logprobs)


class CompletionBody(_Body):
    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None

    def sampling(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """`defaults`: sampling values of the model's generation_config.json."""
        self._refuse_what_cannot_be_done()
        _refuse("echo", self.echo, (None, False))
        _refuse("best_of", self.best_of, (None, self.n or 1))
        _refuse("suffix", self.suffix, (None, ""))
        limit = DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        return self._sampling(defaults, limit, self.logprobs)

    def prompts(self) -> list[str | list[int]]:
        """One entry a prompt: text, or token ids."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if prompt and isinstance(prompt[0], int):
            return [list(prompt)]
        return list(prompt)  # type: ignore[arg-type]


class ChatBody(_Body):
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def sampling(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """Without max_tokens an answer may use what the context leaves."""
        self._refuse_what_cannot_be_done()
        _refuse("continue_final_message", self.continue_final_message, (None, False))
        _refuse("tool_choice", self.tool_choice, (None, "auto", "none"))
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequestError(
                f"top_logprobs {self.top_logprobs} needs logprobs: true", param="top_logprobs", value=self.top_logprobs
            )
        if self.top_logprobs is not None:
            check_integer("top_logprobs", self.top_logprobs, 0, MAX_LOGPROBS)
        if self.max_completion_tokens is not None:
            check_integer("max_completion_tokens", self.max_completion_tokens, 1, MAX_TOKENS)
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return self._sampling(defaults, limit, (self.top_logprobs or 0) if self.logprobs else None)

    @property
    def limit_field(self) -> str | None:
        return super().limit_field if self.max_completion_tokens is None else "max_completion_tokens"

    @property
    def offered_tools(self) -> list[dict[str, Any]] | None:
        """What the template sees. Whether to call one is the model's choice, so "none" offers none."""
        return None if self.tool_choice == "none" else self.tools

    def template_variables(self) -> dict[str, Any]:
        """chat_template_kwargs, none of which stands for what the body says elsewhere."""
        variables = self.chat_template_kwargs or {}
        for name in variables:
            if name in RESERVED_VARIABLES:
                param = f"chat_template_kwargs.{name}"
                raise InvalidRequestError(
                    f"{param} is not allowed: the name is reserved, got {_shortened(variables[name])}",
                    param=param,
                    value=variables[name],
                )
        return variables


BodyT = TypeVar("BodyT", bound=_Body)


def parse_body(cls: type[BodyT], content: object) -> BodyT:
    """A typed body.

    Raises:
        InvalidRequestError: names the first wrong field and its value.
    """
    if not isinstance(content, dict):
        raise InvalidRequestError(f"the body must be a JSON object, found {type(content).__name__}")
    try:
        return cls.model_validate(content)
    except ValidationError as error:
        first = min(error.errors(), key=lambda each: len(each["loc"]))
        param = str(first["loc"][0]) if first["loc"] else None
        value = content.get(param) if param else content
        if first["type"] == "missing":
            raise InvalidRequestError(f"{param} is required", param=param) from error
        raise InvalidRequestError(
            f"{param}: {first['msg']}, got {_shortened(value)}", param=param, value=value
        ) from error


def _refuse(name: str, value: Any, neutral: tuple[Any, ...]) -> None:
    if value not in neutral:
        raise InvalidRequestError(f"{name} is not supported, got {_shortened(value)}", param=name, value=value)


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "…"
