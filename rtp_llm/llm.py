"""LLM: a model in this process, with vLLM's names. Text or tokens in, finished answers out."""

from __future__ import annotations

import random
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from rtp_llm import vllm_arguments
from rtp_llm.config import Config, load_config
from rtp_llm.engine import Engine, Inbox, build
from rtp_llm.errors import ChatTemplateError, InvalidRequestError, shortened
from rtp_llm.loaded_weights import WeightsSource
from rtp_llm.model.answer_text import AnswerText, TokenLogprob
from rtp_llm.model.chat_template import ChatTemplate
from rtp_llm.model.config import read_generation_defaults
from rtp_llm.model.messages import checked_tools
from rtp_llm.model.tokenizer import Tokenizer
from rtp_llm.request import PRIORITY, FinishReason, Request, TokenOutput
from rtp_llm.sampling_params import Flag, SamplingParams, is_unicode

Prompt = str | Mapping[str, Any] | Sequence[int]
Message = Mapping[str, Any]
BYTES = bytes | bytearray | memoryview  # iterables of integers that are no token ids


@dataclass(frozen=True)
class Logprob:
    """A token's log-probability. `rank` counts from 1; None for a sampled token beyond the highest that were asked for."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    """One of a request's n answers."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None  # "stop", "length"
    stop_reason: int | str | None = None  # the stop id or string; None for EOS and length


@dataclass
class RequestOutput:
    """A request and its answers."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = False
    num_cached_tokens: int = 0


class LLM:
    """A model with its engine. Settings that are not given, or "auto", come from RTP_LLM_… variables, else from the defaults.

        with LLM(model="path/to/a/checkpoint") as llm:
            [answer] = llm.generate("Hello", SamplingParams(max_tokens=16))

    `model` may be a hub's name, `revision` its branch, tag or commit, of what is in this machine's cache (hub_cache.py).

    `seed` is the start of the seeds of requests that bring none, and of random weights (`load_format="dummy"`); None is 0.
    Other arguments of vLLM's are taken where they change no answer (vllm_arguments.py). `generate` and `chat` may be called
    from any threads.

    Raises:
        ModelError: the model's files can't be served.
        ConfigError: a setting is wrong; names path and value.
        InvalidRequestError: an argument of vLLM's that asks for what isn't computed.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        device: str = "auto",
        skip_tokenizer_init: bool = False,
        max_model_len: int | None = None,
        seed: int | None = 0,
        load_format: str = "auto",
        max_num_batched_tokens: int | None = None,
        max_num_seqs: int | None = None,
        block_size: int | None = None,
        num_threads: int | None = None,
        enable_prefix_caching: bool | None = None,
        kv_cache_memory_bytes: int | None = None,
        num_gpu_blocks_override: int | None = None,
        kv_cache_dtype: str = "auto",
        tokenizer: str | None = None,
        revision: str | None = None,
        **vllm: Any,
    ) -> None:
        vllm_arguments.check("LLM()", vllm, vllm_arguments.LLM)
        seed = 0 if seed is None else seed
        if tokenizer is not None and Path(tokenizer).resolve() != Path(model).resolve():
            raise InvalidRequestError(
                f"LLM(): tokenizer is not supported, got {tokenizer!r}: the model's own is used",
                param="tokenizer",
                value=tokenizer,
            )
        given = {
            "model.path": str(model),
            "model.revision": revision,
            "model.dtype": dtype,
            "model.max_model_len": max_model_len,
            "model.load_format": load_format,
            "engine.device": device,
            "engine.max_num_batched_tokens": max_num_batched_tokens,
            "engine.max_num_seqs": max_num_seqs,
            "engine.block_tokens": block_size,
            "engine.num_threads": num_threads,
            "engine.enable_prefix_caching": enable_prefix_caching,
            "engine.kv_cache_bytes": kv_cache_memory_bytes,
            "engine.num_kv_blocks": num_gpu_blocks_override,
            "engine.kv_dtype": kv_cache_dtype,
        }
        given = {path: value for path, value in given.items() if value not in (None, "auto")}
        self._open(load_config(overrides=given), seed, has_tokenizer=not skip_tokenizer_init)

    @classmethod
    def of_config(cls, config: Config) -> LLM:
        """Of the sections `model` and `engine`.

        Raises:
            ModelError, ConfigError: as LLM().
        """
        llm = cls.__new__(cls)
        llm._open(config, 0, has_tokenizer=True)
        return llm

    def _open(self, config: Config, seed: int, *, has_tokenizer: bool) -> None:
        config = config.with_model_found()
        directory = config.model.path
        native = build(config.model, config.engine, seed=seed)  # first: it names what is wrong
        self._tokenizer = Tokenizer.load(directory) if has_tokenizer else None
        self._template = ChatTemplate.load(directory) if has_tokenizer else None
        self._defaults = dict(read_generation_defaults(directory).sampling)
        self._seeds = random.Random(seed)
        self._request_ids = count()
        self._turns = _Turns()
        self.engine = Engine(native)

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the engine's thread. Idempotent."""
        self.engine.close()

    def update_weights(self, directory: str | Path) -> None:
        """Serve other weights of the same model from here on: those in `directory` take the place of these, in the same memory.
        Requests that run end on the old ones first; requests that come meanwhile wait. Nothing that was cached is hit again.

        Raises:
            ModelError: they don't fit; names file and tensor. The old ones are in use.
            EngineError: they were not what their headers said, and the old ones can't be read any more: this LLM is closed.
        """
        version = self.engine.native.weights.source.version + 1
        source = WeightsSource(path=str(Path(directory).absolute()), version=version)
        with self._turns.alone():
            self.engine.replace_weights(source)

    def get_tokenizer(self) -> Tokenizer:
        """
        Raises:
            InvalidRequestError: the LLM was made without one.
        """
        if self._tokenizer is None:
            raise InvalidRequestError("text needs a tokenizer, the LLM was made with skip_tokenizer_init=True")
        return self._tokenizer

    @property
    def sampling_defaults(self) -> Mapping[str, Any]:
        """What generation_config.json says, by SamplingParams' names."""
        return self._defaults

    def get_default_sampling_params(self) -> SamplingParams:
        """What generation_config.json says, else SamplingParams' defaults."""
        return SamplingParams(**self._defaults)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: Sequence[int] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        **vllm: Any,
    ) -> list[RequestOutput]:
        """Answer all prompts: texts, lists of token ids, {"prompt": text} or {"prompt_token_ids": ids}; a dictionary may have
        a `cache_salt`, which keeps its prompt's cache apart from others'. `tokenization_kwargs` {"add_special_tokens": False}
        is for texts that have theirs already; `truncate_prompt_tokens` there, as vLLM has it, is that of all sampling params.
        `priority`: one a prompt, the least is served first.

        Raises:
            InvalidRequestError: a prompt or a value can never run; names field and value. Nothing is left running.
        """
        vllm_arguments.check("generate()", vllm, vllm_arguments.GENERATE)
        return self._run(*self._asked(prompts, sampling_params, priority, tokenization_kwargs))

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: Sequence[int] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> Generator[list[RequestOutput], None, None]:
        """As generate(), while the answers grow: whenever tokens have come, the list of all requests as far as they are there,
        which is one and the same; last, finished. Who leaves early calls close() on the iterator: it cancels what runs.
        update_weights() waits for it as for a generate().

        Raises:
            InvalidRequestError: as generate(); values before anything runs.
        """
        asked = self._asked(prompts, sampling_params, priority, tokenization_kwargs)
        return self._shared_steps(*asked)

    def _asked(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        priority: Sequence[int] | None,
        tokenization_kwargs: Mapping[str, Any] | None,
    ) -> tuple[list[_Tokenized], list[SamplingParams]]:
        special, cut = _tokenization(tokenization_kwargs, True)
        singles = _as_list(prompts)
        if not isinstance(priority, list | tuple | None) or len(priority or singles) != len(singles):
            raise InvalidRequestError(
                f"priority must be a list of {len(singles)}, got {shortened(priority)}",
                param="priority",
                value=priority,
            )
        priorities = [PRIORITY.take("priority", each) for each in priority or [0] * len(singles)]
        tokenized = [
            replace(self._encode(prompt, special), priority=each)
            for prompt, each in zip(singles, priorities, strict=True)
        ]
        return tokenized, self._params_of(sampling_params, len(singles), cut)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        **vllm: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several. The template shows `tools` to the model; its calls are in the answer's text.
        With `continue_final_message`, which needs add_generation_prompt=False as in vLLM, it goes on with the last message.

        Raises:
            ChatTemplateError: the messages don't fit the template, or the model has none.
            InvalidRequestError: as generate().
        """
        vllm_arguments.check("chat()", vllm, vllm_arguments.CHAT)
        special, cut = _tokenization(tokenization_kwargs, False)
        Flag().take("add_generation_prompt", add_generation_prompt)
        Flag().take("continue_final_message", continue_final_message)
        if continue_final_message and add_generation_prompt:
            text = "continue_final_message True goes with add_generation_prompt False, got True"
            raise InvalidRequestError(text, param="add_generation_prompt", value=True)
        tokenizer = self.get_tokenizer()
        assert self._template is not None
        template = self._template if chat_template is None else self._template.replaced(chat_template)
        if tools is not None:
            tools = checked_tools(tools) or None
        tokenized = []
        for conversation in _conversations(messages):
            text = template.render(
                conversation,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                variables=chat_template_kwargs,
            )
            tokenized.append(_Tokenized(text, tokenizer.encode(text, add_special_tokens=special)))
        return self._run(tokenized, self._params_of(sampling_params, len(tokenized), cut))

    def _encode(self, prompt: Prompt, add_special_tokens: bool) -> _Tokenized:
        text: str | None = None
        salt = ""
        if isinstance(prompt, Mapping):
            known = {name: value for name, value in prompt.items() if name in vllm_arguments.PROMPT}
            vllm_arguments.check("a prompt", known, vllm_arguments.PROMPT)
            salt = _checked_salt(prompt.get("cache_salt"))
            ids, text = prompt.get("prompt_token_ids"), prompt.get("prompt")
            if ids is None and text is None:
                raise InvalidRequestError(
                    f"a prompt must have prompt or prompt_token_ids, got {dict(prompt)!r}", param="prompt", value=prompt
                )
        elif isinstance(prompt, str):
            ids, text = None, prompt
        else:
            ids = prompt
        if ids is not None and (not isinstance(ids, Iterable) or isinstance(ids, BYTES)):
            raise InvalidRequestError(
                f"prompt_token_ids must be a list of token ids, got {shortened(ids)}",
                param="prompt_token_ids",
                value=ids,
            )
        if ids is None:
            if not isinstance(text, str):
                raise InvalidRequestError(f"prompt must be a text, got {text!r}", param="prompt", value=text)
            return _Tokenized(text, self.get_tokenizer().encode(text, add_special_tokens=add_special_tokens), salt)
        ids = list(ids)
        for index, token in enumerate(ids):
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < 2**31:
                raise InvalidRequestError(
                    f"prompt_token_ids[{index}] must be a token id, got {token!r}",
                    param="prompt_token_ids",
                    value=token,
                )
        return _Tokenized(text, ids, salt)

    def _params_of(
        self, given: SamplingParams | Sequence[SamplingParams] | None, number: int, cut: Mapping[str, Any]
    ) -> list[SamplingParams]:
        """One a prompt, with a seed. `cut`: fields that tokenization_kwargs say."""
        if given is None:
            given = self.get_default_sampling_params()
        if not isinstance(given, SamplingParams | Iterable):
            raise InvalidRequestError(
                f"sampling_params must be SamplingParams, or one a prompt, got {shortened(given)}",
                param="sampling_params",
                value=given,
            )
        params = [given] * number if isinstance(given, SamplingParams) else list(given)
        if len(params) != number:
            raise InvalidRequestError(
                f"sampling_params has {len(params)} entries for {number} prompts", param="sampling_params"
            )
        for each in params:
            if not isinstance(each, SamplingParams):
                raise InvalidRequestError(
                    f"sampling_params must be SamplingParams, got {each!r}", param="sampling_params", value=each
                )
        # A seed of its own for each prompt that brings none.
        seeded = [p if p.seed is not None else replace(p, seed=self._seeds.getrandbits(63)) for p in params]
        return [replace(p, **cut) for p in seeded] if cut else seeded

    def _run(self, prompts: Sequence[_Tokenized], params: Sequence[SamplingParams]) -> list[RequestOutput]:
        last: list[RequestOutput] = []
        for step in self._shared_steps(prompts, params):
            last = step
        return last

    def _shared_steps(
        self, prompts: Sequence[_Tokenized], params: Sequence[SamplingParams]
    ) -> Generator[list[RequestOutput], None, None]:
        with self._turns.shared():
            yield from self._steps(prompts, params)

    def _steps(self, prompts: Sequence[_Tokenized], params: Sequence[SamplingParams]) -> Iterator[list[RequestOutput]]:
        results: list[RequestOutput] = []
        inbox = Inbox(self.engine)
        running: dict[Any, _Answer] = {}
        try:
            for prompt, sampling in zip(prompts, params, strict=True):
                ids = list(sampling.truncated(prompt.ids, self.engine.native.max_model_len))
                result = RequestOutput(str(next(self._request_ids)), prompt.text, ids, [])
                answers = [_Answer(self, result, sampling, choice, prompt) for choice in range(sampling.n)]
                result.outputs = [answer.output for answer in answers]
                results.append(result)
                # The others hit the prompt's blocks once the first has computed them.
                answers[0].siblings = answers[1:]
                running[inbox.add(answers[0].request)] = answers[0]
            while running:
                for key, output in inbox.take():
                    self._advance(key, output, running, inbox)
                yield results
        finally:
            for key in running:
                inbox.cancel(key)

    def _advance(self, key: Any, output: TokenOutput, running: dict[Any, _Answer], inbox: Inbox) -> None:
        answer = running.get(key)
        if answer is None:  # it was ended by a stop string
            return
        answer.push(output)
        siblings, answer.siblings = answer.siblings, []
        for sibling in siblings:
            running[inbox.add(sibling.request)] = sibling
        if answer.output.finish_reason is None:
            return
        del running[key]
        if output.finish_reason is FinishReason.NONE:
            inbox.cancel(key)
        else:
            inbox.forget(key)
        answer.result.finished = all(o.finish_reason is not None for o in answer.result.outputs)


class _Turns:
    """Threads that share an engine, and one that wants it alone: it goes before those that come after it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sharing = 0
        self._is_wanted_alone = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_wanted_alone)
            self._sharing += 1
        try:
            yield
        finally:
            with self._changed:
                self._sharing -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_wanted_alone)
            self._is_wanted_alone = True
            self._changed.wait_for(lambda: self._sharing == 0)
        try:
            yield
        finally:
            with self._changed:
                self._is_wanted_alone = False
                self._changed.notify_all()


@dataclass(frozen=True)
class _Tokenized:
    """A prompt in token ids, and the text that it was made from."""

    text: str | None
    ids: list[int]
    cache_salt: str = ""
    priority: int = 0


class _Answer:
    """One answer as it grows."""

    def __init__(
        self, llm: LLM, result: RequestOutput, sampling: SamplingParams, choice: int, prompt: _Tokenized
    ) -> None:
        self.result = result
        self.siblings: list[_Answer] = []
        self.output = CompletionOutput(choice)
        if sampling.logprobs is not None:
            self.output.logprobs, self.output.cumulative_logprob = [], 0.0
        self.request = Request(
            request_id=result.request_id,
            prompt=result.prompt_token_ids,
            sampling=sampling,
            choice=choice,
            cache_salt=prompt.cache_salt,
            priority=prompt.priority,
        )
        tokenizer = llm.get_tokenizer() if sampling.stop_strings else llm._tokenizer
        self._text = AnswerText(tokenizer, sampling, result.prompt_token_ids, llm.engine.native.eos_token_ids)
        self._named = tokenizer is not None

    def push(self, token: TokenOutput) -> None:
        """The answer ends with the engine's sequence, or before it by a stop string."""
        delta = self._text.take([token])
        output = self.output
        output.token_ids.append(token.token)
        if output.index == 0 and token.position == 0:
            self.result.num_cached_tokens = token.num_cached_tokens
        for entry in delta.logprobs:
            assert output.logprobs is not None
            output.logprobs.append(self._logprobs(entry))
            output.cumulative_logprob = (output.cumulative_logprob or 0.0) + entry.logprob
        output.text += delta.text
        output.finish_reason, output.stop_reason = delta.finish_reason, delta.stop_reason

    def _logprobs(self, entry: TokenLogprob) -> dict[int, Logprob]:
        """The sampled token's and the highest ones', by token id."""
        both = {entry.id: Logprob(entry.logprob, None, entry.token if self._named else None)}
        for rank, top in enumerate(entry.top, 1):
            both[top.id] = Logprob(top.logprob, rank, top.token if self._named else None)
        return both


def _checked_salt(salt: Any) -> str:
    """A prompt's cache_salt; None is none."""
    if salt is None:
        return ""
    if not isinstance(salt, str) or not is_unicode(salt):
        raise InvalidRequestError(
            f"cache_salt must be a text of valid Unicode, got {shortened(salt)}", param="cache_salt", value=salt
        )
    return salt


def _conversations(messages: Any) -> Sequence[Sequence[Message]]:
    """A single conversation is a list of one."""
    if not isinstance(messages, list | tuple):
        raise ChatTemplateError(
            f"messages must be a list of messages, or of such lists, got {shortened(messages)}",
            param="messages",
            value=messages,
        )
    if not messages or not isinstance(messages[0], list | tuple):
        return [messages]
    for index, each in enumerate(messages):
        if not isinstance(each, list | tuple):
            raise ChatTemplateError(
                f"messages[{index}] must be a list of messages as messages[0] is, got {shortened(each)}",
                param=f"messages[{index}]",
                value=each,
            )
    return messages


def _tokenization(given: Mapping[str, Any] | None, special: bool) -> tuple[bool, dict[str, Any]]:
    """What tokenization_kwargs say: whether special tokens are added, and fields of SamplingParams."""
    if not isinstance(given, Mapping | None):
        raise InvalidRequestError(
            f"tokenization_kwargs must be arguments by name, got {shortened(given)}",
            param="tokenization_kwargs",
            value=given,
        )
    rest = dict(given or {})
    value = rest.pop("add_special_tokens", special)
    cut: dict[str, Any] = {
        name: rest.pop(name) for name in ("truncate_prompt_tokens", "truncation_side") if name in rest
    }
    vllm_arguments.check("tokenization_kwargs", rest, vllm_arguments.TOKENIZATION)
    if not isinstance(value, bool):
        raise InvalidRequestError(
            f"add_special_tokens must be true or false, got {value!r}", param="add_special_tokens", value=value
        )
    return value, cut


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A single prompt is a list of one."""
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    if not isinstance(prompts, Iterable) or isinstance(prompts, BYTES):
        raise InvalidRequestError(
            f"prompts must be a prompt or a list, got {shortened(prompts)}", param="prompts", value=prompts
        )
    items: list[Any] = list(prompts)
    if items and all(isinstance(item, int) for item in items):
        return [items]
    return items
