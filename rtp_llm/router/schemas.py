"""Bodies of the OpenAI-style endpoints, and how they become `SamplingParams`.

Unknown fields are ignored. A known field is refused when it would change the answer and this server doesn't compute it
(refused_fields.py, sampling_params.py), or when it needs another field that isn't given.
"""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from types import MappingProxyType, UnionType
from typing import Annotated, Any, ClassVar, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    create_model,
)

from rtp_llm.errors import InvalidRequestError, shortened
from rtp_llm.model.messages import checked_tools
from rtp_llm.request import PRIORITY
from rtp_llm.router.raw_shown import RawShown
from rtp_llm.router.refused_fields import BOTH, CHAT, COMPLETIONS, Table, refuse
from rtp_llm.router.response_store import NO_REFERENCES, AskedResponse, References
from rtp_llm.router.terms import Terms, seconds_of
from rtp_llm.sampling_params import FIELDS, MAX_LOGPROBS, MAX_TOKENS, Integer, SamplingField, SamplingParams, whole

DEFAULT_MAX_TOKENS = 16  # of completions, as OpenAI's

STRICT = ConfigDict(extra="ignore", strict=True)

Whole = Annotated[int, BeforeValidator(whole)]


def _whole_numbers(values: Any) -> Any:
    if isinstance(values, list) and float in set(map(type, values)):
        return [whole(value) for value in values]
    return values


# The first wrong element is the only one that is reported.
Texts = Annotated[list[str], Field(fail_fast=True)]
WholeNumbers = Annotated[list[int], Field(fail_fast=True), BeforeValidator(_whole_numbers)]
_IN_JSON = {int: Whole, Sequence[str]: Texts, Sequence[int]: WholeNumbers, Mapping[int, float]: dict[Any, Any]}


def _in_json(hint: Any) -> Any:
    """The type of a field of a body, from that of SamplingParams' field."""
    if get_origin(hint) in (Union, UnionType):
        return reduce(or_, map(_in_json, get_args(hint)))
    return _IN_JSON.get(hint, hint)


def _sampling_fields() -> Any:
    """A model with SamplingParams' fields, each of its type or None."""
    hints = get_type_hints(SamplingParams)
    types: dict[str, Any] = {name: (_in_json(hints[name]) | None, None) for name in FIELDS}
    return create_model("SamplingFields", __config__=STRICT, **types)


_SAMPLING = _sampling_fields()


def sampling_field_of(model: type[BaseModel], name: str) -> SamplingField | None:
    """What SamplingParams knows of a field of `model` that is its own."""
    own = _SAMPLING.model_fields.get(name)
    return FIELDS[name] if own is not None and own.annotation == model.model_fields[name].annotation else None


# An array where a large body was read piece by piece.
TokenIds: TypeAlias = "list[int] | array[int]"
PromptField: TypeAlias = "str | list[str] | TokenIds | list[TokenIds]"


PROMPT_SCHEMA = TypeAdapter(str | list[str] | list[int] | list[list[int]]).json_schema()


def _prompt(value: Any) -> Any:
    """The first element decides what the others must be, and the first one that is something else is named."""
    if not isinstance(value, list):
        if isinstance(value, str | array):
            return value
        raise _not_a("text, token ids, or a list of such", "prompt", value)
    if value and isinstance(value[0], str):
        _check_each(value, str, "text", "prompt")
        return value
    if value and isinstance(value[0], list | array):
        _check_each(value, (list, array), "list of token ids", "prompt")
        return [_token_ids(each, f"prompt[{number}]") for number, each in enumerate(value)]
    if value and not isinstance(value[0], int | float):
        raise _not_a("text, a token id or a list of token ids", "prompt[0]", value[0])
    return _token_ids(value, "prompt")


def _token_ids(value: Any, where: str) -> Any:
    if isinstance(value, array) or {*map(type, value)} <= {int}:
        return value
    value = _whole_numbers(value)
    _check_each(value, int, "token id", where)
    return value


def _check_each(values: list[Any], kind: type | tuple[type, ...], name: str, where: str) -> None:
    if not all(issubclass(each, kind) and each is not bool for each in {*map(type, values)}):
        wrong = next(i for i, each in enumerate(values) if not isinstance(each, kind) or isinstance(each, bool))
        raise _not_a(name, f"{where}[{wrong}]", values[wrong])


def must_be(where: str, wanted: str, value: Any) -> InvalidRequestError:
    return InvalidRequestError(f"{where} must be {wanted}, got {shortened(value)}", param=where, value=value)


def text_in(where: str, holder: Mapping[str, Any], field: str) -> str:
    """
    Raises:
        InvalidRequestError: the field of `holder`, which is `where`, is no text.
    """
    value = holder.get(field)
    if not isinstance(value, str):
        raise must_be(f"{where}.{field}", "a text", value)
    return value


def _not_a(name: str, where: str, value: Any) -> InvalidRequestError:
    return InvalidRequestError(f"{where} must be a {name}, got {shortened(value)}", param="prompt", value=value)


class StreamOptions(BaseModel):
    model_config = STRICT

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


Recalled: TypeAlias = Mapping[str, list[Any]]  # what References name, by field of the body
NOTHING_RECALLED: Recalled = MappingProxyType({})


class AnyBody(BaseModel):
    """What all endpoints take. None means: not given."""

    model_config = STRICT
    refused: ClassVar[Table] = MappingProxyType({})  # of this endpoint
    written: ClassVar[Mapping[str, str]] = MappingProxyType({})  # fields of this class → as its clients write them

    nests: ClassVar[tuple[str, ...]] = ()  # fields that are objects which may hold the other ones

    model: str | None = None

    @classmethod
    def refused_tables(cls) -> tuple[Table, ...]:
        """Fields that are refused unless they ask for nothing."""
        return (BOTH, cls.refused)

    @classmethod
    def references(cls, content: object) -> References:
        """What a body names of what its router keeps."""
        return NO_REFERENCES

    @classmethod
    def prepared(cls, content: Mapping[str, Any], recalled: Recalled) -> Mapping[str, Any]:
        """A body in this class's fields."""
        return content

    @classmethod
    def typed_by(cls) -> tuple[type[BaseModel], ...]:
        """What the types of a body's fields are checked with; of a field of several, the first."""
        return (cls,)

    @classmethod
    def as_written(cls, error: InvalidRequestError) -> InvalidRequestError:
        """`error`, which names a field of this class, as the endpoint's clients know it."""
        name, *rest = (error.param or "").partition("[")
        if name not in cls.written:
            return error
        message = error.message
        if message.startswith(name):
            message = cls.written[name] + message[len(name) :]
        return type(error)(message, param="".join((cls.written[name], *rest)), value=error.value)

    @classmethod
    def known_fields(cls) -> frozenset[str]:
        """Names of a body's fields that are looked at; others are ignored."""
        return frozenset((*cls.model_fields, *BOTH, *cls.refused))


class Body(_SAMPLING, AnyBody):  # type: ignore[misc, valid-type]
    """What both endpoints take that answer."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    add_special_tokens: bool | None = None
    cache_salt: str | None = Field(None, min_length=1)
    return_timings: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    user: str | None = None
    timeout: float | None = None
    timeout_ms: float | None = None
    ttft_timeout: float | None = None
    ttft_timeout_ms: float | None = None
    priority: Whole | None = None

    @abstractmethod
    def sampling(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """`defaults`: sampling values of the model's generation_config.json."""

    def terms(self) -> Terms:
        """
        Raises:
            InvalidRequestError: names the field and its value.
        """
        return Terms(
            session=self.user or "",
            priority=PRIORITY.take("priority", self.priority or 0),
            timeout_s=min(seconds_of("timeout", self.timeout), seconds_of("timeout_ms", self.timeout_ms, 1e-3)),
            ttft_timeout_s=min(
                seconds_of("ttft_timeout", self.ttft_timeout), seconds_of("ttft_timeout_ms", self.ttft_timeout_ms, 1e-3)
            ),
        )

    @abstractmethod
    def prompts(self) -> list[str | TokenIds] | None:
        """An entry a prompt: text, or token ids. None: each of its conversations is one."""

    def conversations(self) -> Mapping[str, list[Any]]:
        """Messages, by the field that holds them. REQUIRES: prompts() is None."""
        return {}

    @abstractmethod
    def least_texts(self) -> list[str | TokenIds]:
        """An entry a prompt, of which all is in that prompt for sure."""

    def asked_response(self, sampling: SamplingParams) -> AskedResponse | None:
        """Of /v1/responses.

        Raises:
            InvalidRequestError: it can't be shown.
        """
        return None

    def raw_shown(self) -> RawShown | None:
        """Of RTP-LLM's raw requests."""
        return None

    @property
    def include_usage(self) -> bool:
        return bool(self.return_timings or (self.stream_options and self.stream_options.include_usage))

    @property
    def continuous_usage(self) -> bool:
        return bool(
            self.stream_options and self.stream_options.include_usage and self.stream_options.continuous_usage_stats
        )

    cuts_limit: ClassVar[bool] = False  # it may ask for more tokens than the context leaves, and gets these

    @property
    def limit_field(self) -> str | None:
        """The field that asks for a number of tokens, if one is given."""
        return None if self.max_tokens is None else "max_tokens"

    def _sampling(self, defaults: Mapping[str, Any], max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        if self.stream_options is not None and not self.stream:
            given = self.stream_options.model_dump(exclude_unset=True)
            raise InvalidRequestError(
                f"stream_options {shortened(given)} needs stream: true", param="stream_options", value=given
            )
        given = {name: getattr(self, name) for name in FIELDS if getattr(self, name) is not None}
        return SamplingParams(**{**defaults, **given, "max_tokens": max_tokens, "logprobs": logprobs})


class CompletionBody(Body):
    refused = COMPLETIONS

    prompt: Annotated[Any, PlainValidator(_prompt), WithJsonSchema(PROMPT_SCHEMA)]  # a PromptField
    best_of: Whole | None = None

    def sampling(self, defaults: Mapping[str, Any]) -> SamplingParams:
        if self.best_of not in (None, self.n or 1):
            raise InvalidRequestError(
                f"best_of is not supported, got {self.best_of}", param="best_of", value=self.best_of
            )
        limit = DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        return self._sampling(defaults, limit, self.logprobs)

    def prompts(self) -> list[str | TokenIds]:
        prompt = self.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            return [prompt]
        return list(prompt)

    def least_texts(self) -> list[str | TokenIds]:
        return self.prompts()


class ChatBody(Body):
    refused = CHAT

    messages: list[Any]  # the template says what each must be
    max_completion_tokens: Whole | None = None
    logprobs: bool | None = None
    top_logprobs: Whole | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = None
    separate_reasoning: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    documents: list[Any] | None = None
    enable_thinking: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def sampling(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """Without max_tokens an answer may use what the context leaves."""
        if self.tool_choice not in (None, "auto", "none"):
            raise InvalidRequestError(
                f"tool_choice is not supported, got {shortened(self.tool_choice)}",
                param="tool_choice",
                value=self.tool_choice,
            )
        if self.tools is not None:
            checked_tools(self.tools)
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequestError(
                f"top_logprobs {self.top_logprobs} needs logprobs: true", param="top_logprobs", value=self.top_logprobs
            )
        if self.top_logprobs is not None:
            Integer(0, MAX_LOGPROBS).take("top_logprobs", self.top_logprobs)
        if self.max_completion_tokens is not None:
            Integer(1, MAX_TOKENS).take("max_completion_tokens", self.max_completion_tokens)
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return self._sampling(defaults, limit, (self.top_logprobs or 0) if self.logprobs else None)

    @property
    def limit_field(self) -> str | None:
        return super().limit_field if self.max_completion_tokens is None else "max_completion_tokens"

    def prompts(self) -> list[str | TokenIds] | None:
        return None

    def conversations(self) -> Mapping[str, list[Any]]:
        return {"messages": self.messages}

    def least_texts(self) -> list[str | TokenIds]:
        """What users say: templates may leave out the rest."""
        return [_said_by_users(each) for each in self.conversations().values()]

    def template_variables(self) -> dict[str, Any]:
        """Fields that are variables of the template."""
        fields = {
            "documents": self.documents or None,
            "enable_thinking": self.enable_thinking,
            "reasoning_effort": self.reasoning_effort,
        }
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def offered_tools(self) -> list[dict[str, Any]] | None:
        """What the template sees. Whether to call one is the model's choice, so "none" offers none."""
        return None if self.tool_choice == "none" else self.tools or None


class BatchChatBody(ChatBody):
    """Several conversations, answered side by side."""

    messages: Annotated[list[list[Any]], Field(min_length=1, fail_fast=True)]

    def conversations(self) -> Mapping[str, list[Any]]:
        return {f"messages[{number}]": each for number, each in enumerate(self.messages)}


def _said_by_users(messages: list[Any]) -> str:
    users = [each for each in messages if isinstance(each, dict) and each.get("role") == "user"]
    return "".join(content.strip() for each in users if isinstance(content := each.get("content"), str))


BodyT = TypeVar("BodyT", bound=AnyBody)


def parse_body(cls: type[BodyT], content: object, recalled: Recalled = NOTHING_RECALLED) -> BodyT:
    """A typed body. `recalled`: what its references name.

    Raises:
        InvalidRequestError: names the first wrong field and its value.
    """
    if not isinstance(content, dict):
        raise InvalidRequestError(f"the body must be a JSON object, found {type(content).__name__}")
    try:
        refuse(content, *cls.refused_tables())
        body: BodyT = cls.model_validate(cls.prepared(content, recalled))
        return body
    except ValidationError as error:
        # Lists fail fast, so there are no more than a few.
        first = min(error.errors(include_url=False, include_input=False), key=lambda each: len(each["loc"]))
        if isinstance(ours := first.get("ctx", {}).get("error"), InvalidRequestError):
            raise ours from None
        param, value = _place(content, first["loc"])
        if first["type"] == "missing":
            raise InvalidRequestError(f"{param} is required", param=param) from error
        raise InvalidRequestError(
            f"{param}: {first['msg']}, got {shortened(value)}", param=param, value=value
        ) from error


def _place(content: Mapping[str, Any], loc: Sequence[int | str]) -> tuple[str, Any]:
    """The field of `content` at `loc`, as far as objects go, and its value."""
    param, value = str(loc[0]), content.get(str(loc[0]))
    for name in loc[1:]:
        if isinstance(value, Mapping) and name in value:
            param, value = f"{param}.{name}", value[name]
    return param, value
