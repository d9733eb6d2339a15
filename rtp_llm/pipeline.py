"""Pipeline, with RTP-LLM's names: prompts to a model of this process, answers as they grow."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from math import isfinite
from types import MappingProxyType, TracebackType
from typing import Any

from rtp_llm.errors import EngineError, InvalidRequestError, UnsupportedFieldError, shortened
from rtp_llm.llm import CompletionOutput, RequestOutput
from rtp_llm.model.tokenizer import Tokenizer
from rtp_llm.model_factory import Model
from rtp_llm.router.raw_body import RawBody
from rtp_llm.router.raw_shown import RawShown
from rtp_llm.router.schemas import parse_body
from rtp_llm.sampling_params import SamplingParams

# Fields of RTP-LLM's generate_config that change nothing here.
QUIET = frozenset(
    {
        "max_input_tokens", "max_thinking_tokens", "begin_think_token_ids", "end_think_token_ids", "pad_token_id",
        "bos_token_id", "traffic_reject_priority", "qos_priority", "trace_id", "global_request_id", "unique_key",
        "md5_value", "custom_prop", "sp_advice_prompt", "sp_advice_prompt_token_ids", "force_disable_sp_run",
        "can_use_pd_separation", "role_addrs", "gen_timeline", "profile_step", "profile_trace_name", "is_streaming",
        "enable_memory_cache", "enable_remote_cache", "group_timeout", "prompt_logits_top_k", "prompt_logits_start",
        "prompt_logits_end", "return_target_logprob", "resized_shape", "max_pixels", "min_pixels", "fps", "min_frames",
        "max_frames", "crop_positions", "mm_timeout_ms", "add_vision_id", "tool_call_message_extract_strategy",
    }
)  # fmt: skip
# Fields of raw requests that are no arguments here → why.
NOT_HERE: Mapping[str, str] = MappingProxyType(
    {
        "prompt": "prompts are the first argument",
        "prompt_batch": "prompts are the first argument",
        "text": "prompts are the first argument",
        "messages": "LLM.chat() takes conversations",
        "chat_template_kwargs": "LLM.chat() takes conversations",
        "request_format": "prompts are texts",
        "model": "a pipeline has one",
        "generation_config": "generate_config is its name",
        "generate_config": "it is one",
    }
)


@dataclass(frozen=True)
class PipelineResponse:
    """An entry a prompt. With num_return_sequences above 0 a response, its aux_info and its output ids are lists of these."""

    batch_response: list[Any]  # the answer so far, or with return_incremental what is new
    batch_finished: list[bool]
    batch_aux_info: list[Any] = field(repr=False)
    batch_input_ids: list[list[int]] | None = field(default=None, repr=False)  # with return_input_ids
    batch_output_ids: list[Any] | None = field(default=None, repr=False)  # with return_output_ids

    @property
    def finished(self) -> bool:
        return all(self.batch_finished)


class Pipeline:
    """A model's answers, as RTP-LLM's Pipeline gives them. Several may share a model; it may be used from any threads.

    model = ModelFactory.from_huggingface("path/to/a/checkpoint")
    pipeline = Pipeline(model, model.tokenizer)
    for response in pipeline(["Hello"], max_new_tokens=16):
        print(response.batch_response)
    pipeline.stop()
    """

    def __init__(self, model: Model, tokenizer: Tokenizer | None = None) -> None:
        if not isinstance(model, Model):
            raise TypeError(f"Pipeline() takes a model of ModelFactory's, got {shortened(model)}")
        if tokenizer is not None and tokenizer is not model.tokenizer:
            raise InvalidRequestError(
                f"tokenizer is not supported, got {shortened(tokenizer)}: the model's own is used", param="tokenizer"
            )
        self.model = model
        self.tokenizer = model.tokenizer

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the model, for other pipelines of it too. Idempotent. What is still read of an answer raises EngineError."""
        self.model.stop()

    def __call__(
        self, prompts: str | Sequence[str], generate_config: Mapping[str, Any] | None = None, **fields: Any
    ) -> Iterator[PipelineResponse]:
        """Answers of all `prompts`; a single one is a list of one. `fields` are those of RTP-LLM's generate_config (or stand
        in it), taken and refused as a raw request's are: docs/rtp-llm.md. One response whenever tokens have come, the last one
        finished; with yield_generator=False this one alone. Leaving the iterator early cancels what runs, once it is closed.

        Raises:
            InvalidRequestError: a prompt or a value can never run; names field and value. Nothing runs.
            TypeError: no field has this name.
            EngineError: the model is stopped.
        """
        if self.model.is_stopped:
            raise EngineError("the pipeline's model is stopped")
        texts = _texts(prompts)
        if generate_config is not None and not isinstance(generate_config, Mapping):
            raise InvalidRequestError(
                f"generate_config must be fields by name, got {shortened(generate_config)}", param="generate_config"
            )
        _check_names(generate_config or {})
        _check_names(fields)
        given = {**(generate_config or {}), **{name: value for name, value in fields.items() if value is not None}}
        streams = {name: given.pop(name, None) for name in ("yield_generator", "stream")}
        content = {**given, "prompt_batch": texts, "yield_generator": True}
        body = parse_body(RawBody, {n: list(each) if isinstance(each, tuple) else each for n, each in content.items()})
        return self._responses(body, texts, every_step=_is_stream(streams))

    def _responses(self, body: RawBody, texts: list[str], *, every_step: bool) -> Iterator[PipelineResponse]:
        llm = self.model.llm
        try:
            params = body.sampling(llm.sampling_defaults)
            terms = body.terms()
        except InvalidRequestError as error:
            raise body.as_written(error) from None
        for name in ("timeout_ms", "ttft_timeout_ms"):
            seconds = terms.timeout_s if name == "timeout_ms" else terms.ttft_timeout_s
            if isfinite(seconds):
                value = getattr(body, name)
                raise UnsupportedFieldError(f"{name} is not supported, got {value:g}", param=name, value=value)
        tokens = [self.tokenizer.encode(text) for text in texts]
        steps = llm.stream(
            [
                {"prompt": text, "prompt_token_ids": ids, "cache_salt": body.cache_salt}
                for text, ids in zip(texts, tokens, strict=True)
            ],
            [self._within_context(params, len(ids)) for ids in tokens],
            priority=[terms.priority] * len(texts),
        )
        return _shown(steps, body.shown, every_step=every_step)

    def _within_context(self, params: SamplingParams, prompt_tokens: int) -> SamplingParams:
        """RTP-LLM's clients send its limit of 32000 along: it is what the context leaves, where that is less."""
        room = self.model.llm.engine.native.max_model_len - prompt_tokens
        if params.max_tokens is None or params.max_tokens <= room or room < 1:
            return params
        try:
            return replace(params, max_tokens=room)
        except InvalidRequestError as error:
            raise RawBody.as_written(error) from None


def _texts(prompts: Any) -> list[str]:
    texts = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(texts, list | tuple) or not texts:
        raise InvalidRequestError(
            f"prompts must be a text, or a list of at least one, got {shortened(prompts)}", param="prompts"
        )
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidRequestError(
                f"prompts[{number}] must be a text, got {shortened(text)}", param=f"prompts[{number}]", value=text
            )
    return list(texts)


def _check_names(given: Mapping[str, Any]) -> None:
    known = RawBody.known_fields()
    for name, value in given.items():
        if name in QUIET or value is None:
            continue
        if name in NOT_HERE:
            raise InvalidRequestError(f"{name} is no argument of a Pipeline: {NOT_HERE[name]}", param=name, value=value)
        if name not in known:
            raise TypeError(f"Pipeline got an unexpected keyword argument {name!r}")


def _is_stream(given: Mapping[str, Any]) -> bool:
    for name, value in given.items():
        if not isinstance(value, bool | None):
            raise InvalidRequestError(f"{name} must be true or false, got {shortened(value)}", param=name, value=value)
    return False not in given.values()


def _shown(
    steps: Generator[list[RequestOutput], None, None], shown: RawShown, *, every_step: bool
) -> Iterator[PipelineResponse]:
    said: dict[int, int] = {}  # id of an output → its characters of earlier responses
    with closing(steps):
        for requests in steps:
            if every_step or all(request.finished for request in requests):
                yield _response(requests, shown, said)


def _response(requests: Sequence[RequestOutput], shown: RawShown, said: dict[int, int]) -> PipelineResponse:
    def text(output: CompletionOutput) -> str:
        begin = said.get(id(output), 0) if shown.incremental else 0
        said[id(output)] = len(output.text)
        return output.text[begin:]

    def each(request: RequestOutput, of: Any) -> Any:
        made = [of(output) for output in request.outputs]
        return made if shown.sequences else made[0]

    def aux_info(request: RequestOutput) -> Any:
        return each(request, lambda output: _aux_info(request, output)) if shown.aux_info else {}

    return PipelineResponse(
        [each(request, text) for request in requests],
        [request.finished for request in requests],
        [aux_info(request) for request in requests],
        [list(request.prompt_token_ids) for request in requests] if shown.input_ids else None,
        [each(request, lambda output: list(output.token_ids)) for request in requests] if shown.output_ids else None,
    )


def _aux_info(request: RequestOutput, output: CompletionOutput) -> dict[str, Any]:
    """Tokens of prompt and answer, and of the prompt those that were cached."""
    return {
        "input_len": len(request.prompt_token_ids),
        "output_len": len(output.token_ids),
        "iter_count": len(output.token_ids),
        "reuse_len": request.num_cached_tokens,
    }
