"""What a body asks: its JSON, typed and checked, its prompts as token ids. Knows the model's files and no worker.

A small body is read on the event loop; a larger one is parsed there, its text rendered and tokenized in a thread; a large one
is read by the same code in a process of its own (body_process.py).
"""

from __future__ import annotations

import json
import logging
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from rtp_llm.config import Config, Pool
from rtp_llm.errors import InvalidRequestError, PromptTooLongError, shortened
from rtp_llm.model.chat_template import ChatTemplate
from rtp_llm.model.config import GenerationDefaults, read_generation_defaults, read_model_config
from rtp_llm.model.parts import Parsers, PartsAsked, parsers_of, reasoning_forms
from rtp_llm.model.tokenizer import Tokenizer
from rtp_llm.router.answers import Shown
from rtp_llm.router.json_text import Build, JsonText
from rtp_llm.router.response_store import Recall, nothing_kept
from rtp_llm.router.schemas import (
    NOTHING_RECALLED,
    AnyBody,
    Body,
    BodyT,
    ChatBody,
    CompletionBody,
    TokenIds,
    parse_body,
)
from rtp_llm.router.terms import NO_TERMS, Terms
from rtp_llm.sampling_params import MAX_SUPPRESSED_TOKENS, SamplingParams

log = logging.getLogger(__name__)

# A text of more is not tokenized to be cut: that takes up to 400 bytes of memory for each of its own.
MAX_TRUNCATED_BYTES = 512 << 10
MESSAGES = ("messages", "input", "previous_response_id")  # fields of several, each of a token at least


class BodyTooLargeError(InvalidRequestError):
    """The request body exceeds `router.max_body_bytes`, or reading it takes too much memory."""

    http_status = 413


class ModelNotFoundError(InvalidRequestError):
    """The named model isn't served here."""

    http_status = 404
    code = "model_not_found"

    @classmethod
    def of(cls, name: str, served: str) -> ModelNotFoundError:
        return cls(f"the model {shortened(name)} does not exist here; served: {served!r}", param="model", value=name)


@dataclass(frozen=True, kw_only=True)
class Asked(Shown):
    """What a body asks for, without the body. It is small: token ids are most of it."""

    field: str  # that holds the prompts
    prompts: Sequence[Sequence[int]]
    sampling: SamplingParams  # of each; max_tokens None: what the context leaves
    limit_field: str | None  # that set max_tokens
    tokens_as_ids: bool = False  # logprobs name them so
    cache_salt: str = ""
    terms: Terms = NO_TERMS
    parts: Sequence[
        PartsAsked | None
    ] = ()  # of each prompt, how its answers are read; None, or no entry: they are text
    cuts_limit: bool = False  # max_tokens beyond the context are what it leaves


@contextmanager
def as_written(body: AnyBody) -> Iterator[None]:
    """A refusal names the field that the endpoint's clients know."""
    try:
        yield
    except InvalidRequestError as error:
        if (ours := body.as_written(error)) is error:
            raise
        raise ours from error


@contextmanager
def naming(param: str) -> Iterator[None]:
    """A refusal of the tokenizer, which knows no fields, is one of `param`."""
    try:
        yield
    except InvalidRequestError as error:
        if error.param is not None:
            raise
        raise InvalidRequestError(f"{param}: {error.message}", param=param) from error


@contextmanager
def _within(where: str) -> Iterator[None]:
    """A refusal of messages is one of `where`, which holds them."""
    try:
        yield
    except InvalidRequestError as error:
        if where == "messages" or not (error.param or "").startswith("messages"):
            raise
        message, param = (text.replace("messages", where, 1) for text in (error.message, error.param or ""))
        raise type(error)(message, param=param, value=error.value) from error


class BodyReader:
    """Bodies of one served model. Thread-safe."""

    def __init__(self, config: Config) -> None:
        self.model_names = config.model_names
        self.model_name = config.served_name
        self.tokenizer = Tokenizer.load(config.model.path)
        self._chat_template = ChatTemplate.load(config.model.path)
        model = read_model_config(config.model.path)
        self._vocab_size = model.vocab_size
        if self.tokenizer.vocab_size > model.vocab_size:
            log.warning(
                "%s: the tokenizer has %d tokens, the model embeddings of %d: texts that need others are refused",
                config.model.path,
                self.tokenizer.vocab_size,
                model.vocab_size,
            )
        self.context = config.model.max_model_len or model.max_position_embeddings
        self._min_priority = config.router.min_priority
        self._max_choices = config.router.max_choices
        self._caches_prefixes = any(config.engine_of(pool).enable_prefix_caching for pool in Pool)
        self._defaults: GenerationDefaults = read_generation_defaults(config.model.path)
        self._parsers_with_tools, self._parsers_without = (
            parsers_of(
                config.model.tool_parser, config.model.reasoning_parser, self._chat_template.source_for(tools=tools)
            )
            for tools in (True, False)
        )

    # --- JSON → typed.

    def parsed(self, cls: type[BodyT], body: bytes | bytearray, recall: Recall = nothing_kept) -> BodyT:
        """
        Raises:
            InvalidRequestError: it is no JSON, a field is wrong, or the model is another one.
        """
        content = self.content(body)
        return self.typed(cls, content, recall(cls.references(content)))

    def parsed_piecewise(self, cls: type[BodyT], body: bytes | bytearray, recall: Recall = nothing_kept) -> BodyT:
        """The same of a large body: what no field of `cls` wants isn't built, and no list becomes longer than it may be.

        Raises:
            InvalidRequestError: as `parsed`, or a field has too many values.
        """
        wanted: dict[str, Build] = dict.fromkeys(cls.known_fields(), JsonText.value)
        if cls is CompletionBody:
            wanted["prompt"] = self._read_prompt
        for field in wanted.keys() & MESSAGES:
            wanted[field] = self._read_messages
        content = self._content(lambda: JsonText(body).fields(wanted))
        if not (text := recall(cls.references(content))):
            return parse_body(cls, content)
        return parse_body(cls, content, JsonText(text).fields(dict.fromkeys(MESSAGES, self._read_messages)))

    def content(self, body: bytes | bytearray) -> Any:
        """A small body's JSON.

        Raises:
            InvalidRequestError: it is none, or the model is another one.
        """
        return self._content(lambda: json.loads(body))

    @staticmethod
    def typed(kind: type[BodyT], content: Any, recalled: bytes) -> BodyT:
        """
        Raises:
            InvalidRequestError: a field is wrong.
        """
        return parse_body(kind, content, json.loads(recalled) if recalled else NOTHING_RECALLED)

    def _content(self, load: Callable[[], Any]) -> Any:
        try:
            content = load()
        except InvalidRequestError:
            raise
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(f"the body is not valid JSON: {error}") from error
        if isinstance(content, Mapping):
            self._check_model(content.get("model"))
        return content

    def _check_model(self, name: object) -> None:
        if isinstance(name, str) and name not in self.model_names:
            raise ModelNotFoundError.of(name, self.model_name)

    def _read_messages(self, text: JsonText, field: str, at: int) -> tuple[Any, int]:
        """A message has a token at least."""
        return text.value(field, at, max_items=self.context)

    def _read_prompt(self, text: JsonText, field: str, at: int) -> tuple[Any, int]:
        """Lists of token ids become arrays."""
        if text.text[at : at + 1] == "[":
            tokens, end = text.integers(at)
            if tokens is not None:
                return tokens, end
            if (found := text.lists_of_integers(at, self._max_choices)) is not None:
                return found
        return text.value(field, at, max_items=max(self._max_choices, self.context))

    def least_tokens(self, body: Body) -> list[int]:
        """To compute of each prompt, before it is tokenized: no token stands for more bytes than the tokenizer's longest. Where
        prefixes are cached, it may be the last alone."""
        if self._caches_prefixes:
            return [1] * len(body.least_texts())
        longest = max(self.tokenizer.max_token_bytes, 1)
        sizes = [
            len(text.encode(errors="surrogatepass")) // longest if isinstance(text, str) else len(text)
            for text in body.least_texts()
        ]
        kept = body.truncate_prompt_tokens
        return [max(size if kept is None else min(size, kept), 1) for size in sizes]

    # --- Typed → asked. Takes as long as the text is.

    def asked(self, body: Body) -> Asked:
        """
        Raises:
            InvalidRequestError: it can never be answered.
        """
        with as_written(body):
            prompts = body.prompts()
            if prompts is not None:
                return self._completion(body, prompts)
            assert isinstance(body, ChatBody)
            return self._chats(body)

    def _completion(self, body: Body, prompts: Sequence[str | TokenIds]) -> Asked:
        sampling = self._sampling(body)
        if not prompts:
            raise InvalidRequestError("prompt must hold at least one prompt, got []", param="prompt", value=[])
        self._check_choices("prompt", len(prompts), sampling.n)
        special = body.add_special_tokens is not False
        return self._ask(body, "prompt", [self._tokens(each, special, sampling) for each in prompts], sampling)

    def _chats(self, body: ChatBody) -> Asked:
        sampling = self._sampling(body)
        chats = body.conversations()
        self._check_choices("messages", len(chats), sampling.n)
        prompts: list[Sequence[int]] = []
        parts: list[PartsAsked | None] = []
        for where, messages in chats.items():
            chat = body.model_copy(update={"messages": messages})
            parsers = self._parsers(chat)
            with _within(where):
                text = self.rendered(chat)
                prompts.append(self._encode(text, "messages", bool(chat.add_special_tokens), sampling))
            parts.append(self._parts(chat, parsers, text, prompts[-1]))
        return self._ask(body, "messages", prompts, sampling, parts)

    def rendered(self, body: ChatBody) -> str:
        """The prompt as text.

        Raises:
            InvalidRequestError: the template refuses it, or doesn't read what is given for it.
        """
        if body.continue_final_message and body.add_generation_prompt:
            raise InvalidRequestError(
                "continue_final_message true goes with add_generation_prompt false, got true",
                param="add_generation_prompt",
            )
        variables = body.template_variables()
        for name in variables:
            if not self._chat_template.reads(name, tools=bool(body.offered_tools)):
                raise InvalidRequestError(
                    f"{name} is not supported for {self.model_name}: its chat template doesn't read it", param=name
                )
        return self._chat_template.render(
            body.messages,
            tools=body.offered_tools,
            add_generation_prompt=body.add_generation_prompt is not False,
            continue_final_message=bool(body.continue_final_message),
            variables={**variables, **(body.chat_template_kwargs or {})},
        )

    def _ask(
        self,
        body: Body,
        field: str,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams,
        parts: Sequence[PartsAsked | None] = (),
    ) -> Asked:
        terms = body.terms()
        if terms.priority < self._min_priority:
            raise InvalidRequestError(
                f"priority must be at least {self._min_priority} here, got {terms.priority}",
                param="priority",
                value=terms.priority,
            )
        return Asked(
            field=body.written.get(field, field),
            prompts=prompts,
            sampling=sampling,
            limit_field=body.limit_field and body.written.get(body.limit_field, body.limit_field),
            stream=bool(body.stream),
            model=body.model or "",
            include_usage=body.include_usage,
            continuous_usage=body.continuous_usage,
            return_timings=bool(body.return_timings),
            return_token_ids=bool(body.return_token_ids),
            tokens_as_ids=bool(body.return_tokens_as_token_ids),
            cache_salt=body.cache_salt or "",
            terms=terms,
            parts=parts,
            response=body.asked_response(sampling),
            raw=body.raw_shown(),
            cuts_limit=body.cuts_limit,
        )

    def _parsers(self, body: ChatBody) -> Parsers:
        """What reads this request's answers.

        Raises:
            InvalidRequestError: tools are offered, and how this model writes its calls isn't known here.
        """
        parsers = self._parsers_with_tools if body.offered_tools else self._parsers_without
        if not body.offered_tools:
            parsers = replace(parsers, tool_calls=None)
        elif parsers.tool_calls is None and not parsers.calls_by_reasoning:
            raise InvalidRequestError(
                f"tools are not supported for {self.model_name}: its chat template shows no form of calls that is read here, "
                "and model.tool_parser names none; with tool_choice: none they are not offered",
                param="tools",
                value=body.tools,
            )
        return parsers if body.separate_reasoning is not False else replace(parsers, reasoning=None)

    def _parts(self, body: ChatBody, parsers: Parsers, prompt: str, tokens: Sequence[int]) -> PartsAsked | None:
        if parsers.reasoning is None and parsers.tool_calls is None:
            return None
        if body.truncate_prompt_tokens is not None:  # what the model sees
            prompt = self.tokenizer.decode(tokens, skip_special_tokens=False)
        return PartsAsked(
            reasoning=parsers.reasoning,
            tool_calls=parsers.tool_calls,
            tools=body.offered_tools or (),
            parallel=body.parallel_tool_calls is not False,
            shows_reasoning=body.include_reasoning is not False,
            prompt_end=reasoning_forms.begun(prompt, continued=bool(body.continue_final_message)),
            marks=self.tokenizer.special_ids_of(parsers.marks),
        )

    def _sampling(self, body: Body) -> SamplingParams:
        sampling = body.sampling(self._defaults.sampling)
        allowed = sampling.allowed_token_ids or [0]
        ids = {
            "stop_token_ids": sampling.stop_token_ids,
            "logit_bias": sampling.logit_bias,
            "allowed_token_ids": (min(allowed), max(allowed)),
        }
        for name, tokens in ids.items():
            for token in tokens or ():
                self.check_token(token, name)
        ending = {*self._defaults.eos_token_ids, *(sampling.stop_token_ids or [])}
        if sampling.min_tokens and len(ending) > MAX_SUPPRESSED_TOKENS:
            raise InvalidRequestError(
                f"stop_token_ids: with min_tokens they and the model's EOS ids are at most {MAX_SUPPRESSED_TOKENS}, "
                f"got {len(ending)}",
                param="stop_token_ids",
                value=len(ending),
            )
        kept, limit = sampling.truncate_prompt_tokens or 0, (body.limit_field and sampling.max_tokens) or 0
        if kept > 0 and kept + limit > self.context:
            beside = f" and {limit} of {body.limit_field}" if limit else ""
            raise PromptTooLongError(
                f"truncate_prompt_tokens: {kept}{beside} exceed {self._limit()}",
                param="truncate_prompt_tokens",
                value=kept,
            )
        return sampling

    def _check_choices(self, field: str, num_prompts: int, n: int) -> None:
        limit = self._max_choices
        if num_prompts * n > limit:
            param = field if num_prompts > 1 else "n"
            raise InvalidRequestError(
                f"{param}: {num_prompts} prompts times n {n} are {num_prompts * n} answers, one request may ask for {limit}",
                param=param,
                value=num_prompts * n,
            )

    def _tokens(self, prompt: str | Sequence[int], add_special_tokens: bool, sampling: SamplingParams) -> Sequence[int]:
        if isinstance(prompt, str):
            return self._encode(prompt, "prompt", add_special_tokens, sampling)
        prompt = sampling.truncated(prompt, self.context)
        if len(prompt) >= self.context:
            raise self._too_long("prompt", len(prompt))
        for token in {min(prompt, default=0), max(prompt, default=0)}:
            self.check_token(token, "prompt")
        return array("i", prompt)

    def _encode(self, text: str, param: str, add_special_tokens: bool, sampling: SamplingParams) -> Sequence[int]:
        with naming(param):
            if sampling.truncate_prompt_tokens is None:
                self._check_text(text, param)
            elif len(text.encode(errors="surrogatepass")) > MAX_TRUNCATED_BYTES:
                self._check_text(text, param, f"; texts of up to {MAX_TRUNCATED_BYTES} bytes are truncated")
            whole = self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        tokens = sampling.truncated(whole, self.context)
        if len(tokens) >= self.context:
            raise self._too_long(param, len(tokens))
        if self.tokenizer.vocab_size > self._vocab_size and tokens and max(tokens) >= self._vocab_size:
            unknown = next(token for token in tokens if token >= self._vocab_size)
            raise InvalidRequestError(
                f"{param}: {shortened(self.tokenizer.token_text(unknown))} is token {unknown} of the tokenizer, the model has "
                f"embeddings of {self._vocab_size}",
                param=param,
                value=unknown,
            )
        return array("i", tokens)

    def _check_text(self, text: str, param: str, hint: str = "") -> None:
        """Tokenizing takes seconds for megabytes; a text that has more tokens than the context by its size, or by those of its
        beginning, is spared."""
        longest = self.tokenizer.max_token_bytes
        size = len(text.encode(errors="surrogatepass"))
        if size > self.context * longest:
            raise PromptTooLongError(
                f"{param}: a text of {size} bytes exceeds {self._limit()}, which hold at most {longest} bytes each{hint}",
                param=param,
                value=size,
            )
        if self.tokenizer.has_more_tokens(text, self.context):
            raise PromptTooLongError(
                f"{param}: a text of {size} bytes has more than {self.context} tokens, it exceeds {self._limit()}{hint}",
                param=param,
                value=size,
            )

    def _too_long(self, param: str, num_tokens: int) -> PromptTooLongError:
        return PromptTooLongError(
            f"{param}: {num_tokens} prompt tokens and one more for the answer exceed {self._limit()}",
            param=param,
            value=num_tokens,
        )

    def _limit(self) -> str:
        """In words that OpenAI's clients look for."""
        return f"the context: this model's maximum context length is {self.context} tokens"

    def check_token(self, token: int, param: str) -> None:
        if not 0 <= token < self._vocab_size:
            raise InvalidRequestError(
                f"{param}: token id {shortened(token)} is out of range, the vocabulary has {self._vocab_size}",
                param=param,
                value=token,
            )
