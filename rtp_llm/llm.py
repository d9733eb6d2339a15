"""LLM: a model in this process, with vLLM's names. Text or tokens in, finished answers out."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from rtp_llm.config import load_config
from rtp_llm.engine import Engine, build
from rtp_llm.errors import InvalidRequestError
from rtp_llm.model.chat_template import ChatTemplate
from rtp_llm.model.config import read_generation_defaults
from rtp_llm.model.detokenizer import Detokenizer
from rtp_llm.model.stop_strings import StopStrings
from rtp_llm.model.tokenizer import Tokenizer
from rtp_llm.request import FinishReason, Request, SamplingParams, TokenOutput

Prompt = str | Mapping[str, Any] | Sequence[int]
Message = Mapping[str, Any]


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

    `seed` is the start of the seeds of requests that bring none, and of random weights (`load_format="dummy"`).

    Raises:
        ModelError: the model's files can't be served.
        ConfigError: a setting is wrong; names path and value.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        device: str = "auto",
        skip_tokenizer_init: bool = False,
        max_model_len: int | None = None,
        seed: int = 0,
        load_format: str = "auto",
        max_num_batched_tokens: int | None = None,
        max_num_seqs: int | None = None,
        block_size: int | None = None,
        num_threads: int | None = None,
        enable_prefix_caching: bool | None = None,
        kv_cache_memory_bytes: int | None = None,
        num_gpu_blocks_override: int | None = None,
        kv_cache_dtype: str = "auto",
    ) -> None:
        given = {
            "model.path": str(model),
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
        config = load_config(overrides={path: value for path, value in given.items() if value not in (None, "auto")})
        native = build(config.model, config.engine, seed=seed)  # first: it names what is wrong
        self._tokenizer = None if skip_tokenizer_init else Tokenizer.load(model)
        self._template = None if skip_tokenizer_init else ChatTemplate.load(model)
        self._defaults = dict(read_generation_defaults(model).sampling)
        self._seeds = random.Random(seed)
        self._request_ids = count()
        self.engine = Engine(native)

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the engine's thread. Idempotent."""
        self.engine.close()

    def get_tokenizer(self) -> Tokenizer:
        """
        Raises:
            InvalidRequestError: the LLM was made without one.
        """
        if self._tokenizer is None:
            raise InvalidRequestError("text needs a tokenizer, the LLM was made with skip_tokenizer_init=True")
        return self._tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What generation_config.json says, else SamplingParams' defaults."""
        return SamplingParams(**self._defaults)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Answer all prompts: texts, lists of token ids, {"prompt": text} or {"prompt_token_ids": ids}.

        Raises:
            InvalidRequestError: a prompt or a value can never run; names field and value. Nothing is left running.
        """
        singles = _as_list(prompts)
        return self._run([self._encode(prompt) for prompt in singles], self._params_of(sampling_params, len(singles)))

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several.

        Raises:
            ChatTemplateError: the messages don't fit the template, or the model has none.
            InvalidRequestError: as generate().
        """
        tokenizer = self.get_tokenizer()
        assert self._template is not None
        conversations: Any = [messages] if not messages or isinstance(messages[0], Mapping) else messages
        encoded: list[tuple[str | None, list[int]]] = []
        for conversation in conversations:
            text = self._template.render(
                conversation, add_generation_prompt=add_generation_prompt, **(chat_template_kwargs or {})
            )
            encoded.append((text, tokenizer.encode(text, add_special_tokens=False)))
        return self._run(encoded, self._params_of(sampling_params, len(encoded)))

    def _encode(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        text: str | None = None
        if isinstance(prompt, Mapping):
            ids, text = prompt.get("prompt_token_ids"), prompt.get("prompt")
            if ids is None and text is None:
                raise InvalidRequestError(
                    f"a prompt must have prompt or prompt_token_ids, got {dict(prompt)!r}", param="prompt", value=prompt
                )
        elif isinstance(prompt, str):
            ids, text = None, prompt
        else:
            ids = prompt
        if ids is not None and not isinstance(ids, Iterable):
            raise InvalidRequestError(
                f"prompt_token_ids must be a list of token ids, got {ids!r}", param="prompt_token_ids", value=ids
            )
        if ids is None:
            if not isinstance(text, str):
                raise InvalidRequestError(f"prompt must be a text, got {text!r}", param="prompt", value=text)
            return text, self.get_tokenizer().encode(text)
        ids = list(ids)
        for index, token in enumerate(ids):
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < 2**31:
                raise InvalidRequestError(
                    f"prompt_token_ids[{index}] must be a token id, got {token!r}",
                    param="prompt_token_ids",
                    value=token,
                )
        return text, ids

    def _params_of(self, given: SamplingParams | Sequence[SamplingParams] | None, number: int) -> list[SamplingParams]:
        if given is None:
            given = self.get_default_sampling_params()
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
        return [p if p.seed is not None else replace(p, seed=self._seeds.getrandbits(63)) for p in params]

    def _run(
        self, prompts: Sequence[tuple[str | None, list[int]]], params: Sequence[SamplingParams]
    ) -> list[RequestOutput]:
        results = []
        running: dict[Any, _Answer] = {}
        try:
            for (text, ids), sampling in zip(prompts, params, strict=True):
                result = RequestOutput(str(next(self._request_ids)), text, ids, [])
                answers = [_Answer(self, result, sampling, choice) for choice in range(sampling.n)]
                result.outputs = [answer.output for answer in answers]
                results.append(result)
                # The others hit the prompt's blocks once the first has computed them.
                answers[0].siblings = answers[1:]
                self._add(answers[0], running)
            while running:
                for key, output in self.engine.take():
                    self._advance(key, output, running)
        finally:
            for key in running:
                self.engine.cancel(key)
        return results

    def _add(self, answer: _Answer, running: dict[Any, _Answer]) -> None:
        key = self.engine.next_key(answer.output.index)
        self.engine.add(answer.request, key)
        running[key] = answer

    def _advance(self, key: Any, output: TokenOutput, running: dict[Any, _Answer]) -> None:
        answer = running.get(key)
        if answer is None:  # it was ended by a stop string
            return
        native_end = answer.push(output)
        siblings, answer.siblings = answer.siblings, []
        for sibling in siblings:
            self._add(sibling, running)
        if answer.output.finish_reason is None:
            return
        del running[key]
        if not native_end:
            self.engine.cancel(key)
        answer.result.finished = all(o.finish_reason is not None for o in answer.result.outputs)


class _Answer:
    """One answer as it grows."""

    def __init__(self, llm: LLM, result: RequestOutput, sampling: SamplingParams, choice: int) -> None:
        self.result = result
        self.siblings: list[_Answer] = []
        self.output = CompletionOutput(choice)
        if sampling.logprobs is not None:
            self.output.logprobs, self.output.cumulative_logprob = [], 0.0
        self.request = Request(
            request_id=result.request_id, prompt=result.prompt_token_ids, sampling=sampling, choice=choice
        )
        self._sampling = sampling
        self._eos = set(llm.engine.native.eos_token_ids)
        self._tokenizer = llm._tokenizer
        if sampling.stop_strings:
            llm.get_tokenizer()
        self._detokenizer: Detokenizer | None = None
        if self._tokenizer is not None:
            self._detokenizer = self._tokenizer.detokenizer(
                skip_special_tokens=sampling.skip_special_tokens, prompt=result.prompt_token_ids
            )
        self._stops = StopStrings(sampling.stop_strings, include_in_output=sampling.include_stop_str_in_output)

    def push(self, token: TokenOutput) -> bool:
        """Whether the engine has ended the sequence; the answer may also end by a stop string."""
        token.check()
        output = self.output
        output.token_ids.append(token.token)
        if output.index == 0 and token.position == 0:
            self.result.num_cached_tokens = token.num_cached_tokens
        if output.logprobs is not None and token.logprob is not None:
            output.logprobs.append(self._logprobs(token))
            output.cumulative_logprob = (output.cumulative_logprob or 0.0) + token.logprob
        ended = token.finish_reason is not FinishReason.NONE
        # The token that stopped the answer is in token_ids, not in the text.
        shown = token.finish_reason is not FinishReason.STOP or self._sampling.include_stop_str_in_output
        self._push_text([token.token] if shown else [], ended)
        if self._stops.matched is not None:
            output.finish_reason, output.stop_reason = "stop", self._stops.matched
        elif ended:
            output.finish_reason = "stop" if token.finish_reason is FinishReason.STOP else "length"
            if token.finish_reason is FinishReason.STOP and token.token not in self._eos:
                output.stop_reason = token.token
        return ended

    def _push_text(self, tokens: list[int], ended: bool) -> None:
        if self._detokenizer is None:
            return
        text = self._detokenizer.push(tokens)
        if ended:
            text += self._detokenizer.finish()
        self.output.text += self._stops.push(text, may_end=len(self.output.token_ids) > self._sampling.min_tokens)
        if ended and self._stops.matched is None:
            self.output.text += self._stops.finish()

    def _logprobs(self, token: TokenOutput) -> dict[int, Logprob]:
        """The sampled token's and the highest ones', by token id."""
        ranks = {id: rank for rank, (id, _) in enumerate(token.top_logprobs, 1)}
        both = {token.token: token.logprob or 0.0, **dict(token.top_logprobs)}
        decode = self._tokenizer.token_text if self._tokenizer else None
        return {id: Logprob(value, ranks.get(id), decode(id) if decode else None) for id, value in both.items()}


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A single prompt is a list of one."""
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    if not isinstance(prompts, Iterable):
        raise InvalidRequestError(
            f"prompts must be a prompt or a list, got {prompts!r}", param="prompts", value=prompts
        )
    items: list[Any] = list(prompts)
    if items and all(isinstance(item, int) for item in items):
        return [items]
    return items
