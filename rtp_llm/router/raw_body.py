"""Bodies of RTP-LLM's raw requests, `POST /` and `POST /batch_infer`: texts or conversations, and how they are to be answered,
in a `generate_config` or beside it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field

from rtp_llm.errors import InvalidRequestError, UnsupportedFieldError, shortened
from rtp_llm.router.raw_shown import RawShown
from rtp_llm.router.refused_fields import EMPTY, OFF, Table
from rtp_llm.router.schemas import AnyBody, ChatBody, Recalled, Texts, TokenIds, Whole, must_be, parse_body
from rtp_llm.sampling_params import TOKEN_ID

REFUSED: Table = MappingProxyType(
    {
        # from what, and by which model
        "urls": EMPTY,
        "images": EMPTY,
        "functions": EMPTY,
        "tools": EMPTY,
        "adapter_name": EMPTY,
        "task_id": (),
        "out_prefix": ("",),
        # how tokens are found
        "num_beams": (0, 1),
        "variable_num_beams": EMPTY,
        "no_repeat_ngram_size": (0,),
        "top_p_decay": (),
        "top_p_min": (),
        "top_p_reset_ids": (),
        "bad_words_list": EMPTY,
        "using_hf_sampling": OFF,
        "force_sp_accept": OFF,
        "sp_edit": OFF,
        "combo_token_size": (0,),
        "banned_combo_token_ids": EMPTY,
        "auto_parse_banned_combo": OFF,
        "enable_cross_sequence_ban": OFF,
        "cross_seq_diverge_start_combo": (0,),
        "in_think_mode": OFF,
        "thinking_mode": (0,),
        # the answer's form and end
        "json_format": OFF,
        "response_format": ({"type": "text"},),
        "json_schema": (),
        "regex": (),
        "ebnf": (),
        "structural_tag": (),
        "eos_token_id": (),
        # what is shown beside it
        "calculate_loss": (0,),
        "return_logits": OFF,
        "output_logits": OFF,
        "logits_index": (),
        "return_prompt_logits": OFF,
        "return_hidden_states": OFF,
        "output_hidden_states": OFF,
        "return_all_hidden_states": OFF,
        "hidden_states_cut_dim": (0,),
        "normalized_hidden_states": OFF,
        "return_cum_log_probs": OFF,
        "return_softmax_probs": OFF,
        "return_all_probs": (0,),
        "select_tokens_str": EMPTY,
        "select_tokens_id": EMPTY,
    }
)
# Fields of a chat → RTP-LLM's of the same values.
SAME: Mapping[str, str] = MappingProxyType(
    {
        "model": "model",
        "max_tokens": "max_new_tokens",
        "min_tokens": "min_new_tokens",
        "top_k": "top_k",
        "top_p": "top_p",
        "temperature": "temperature",
        "repetition_penalty": "repetition_penalty",
        "presence_penalty": "presence_penalty",
        "frequency_penalty": "frequency_penalty",
        "seed": "random_seed",
        "stop": "stop_words_str",
        "include_stop_str_in_output": "print_stop_words",
        "ignore_eos": "ignore_eos",
        "timeout_ms": "timeout_ms",
        "ttft_timeout_ms": "ttft_timeout_ms",
        "user": "chat_id",
        "chat_template_kwargs": "chat_template_kwargs",
        "cache_salt": "cache_salt",
        "priority": "priority",
    }
)
CONFIGS = ("generate_config", "generation_config")
PROMPTS = ("prompt", "prompt_batch", "text", "messages")
CHAT_API = "chatapi"


class NoPromptError(InvalidRequestError):
    """There is none."""


class RawRequest(AnyBody):
    """What a body says, of its types: what it says of its generate_config is among its own fields."""

    prompt: Any = None
    prompt_batch: list[Any] | None = None
    text: str | None = None
    messages: list[Any] | None = None
    request_format: Literal["raw", "chatapi"] | None = None
    yield_generator: bool | None = None
    stream: bool | None = None

    max_new_tokens: Whole | None = None
    gen_length: Whole | None = None
    min_new_tokens: Whole | None = None
    num_return_sequences: Whole | None = Field(None, ge=0)
    do_sample: bool | None = None
    top_k: Whole | None = None
    top_p: float | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    random_seed: Whole | None = None
    stop_words_str: Texts | None = None
    stop_words_list: list[Any] | None = None
    print_stop_words: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    timeout_ms: float | None = None
    ttft_timeout_ms: float | None = None
    chat_id: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_incremental: bool | None = None
    return_input_ids: bool | None = None
    output_input_ids: bool | None = None
    return_output_ids: bool | None = None
    aux_info: bool | None = None
    reuse_cache: bool | None = None
    enable_device_cache: bool | None = None
    cache_salt: str | None = Field(None, min_length=1)
    priority: Whole | None = None

    @classmethod
    def refused_tables(cls) -> tuple[Table, ...]:
        return (REFUSED,)

    @property
    def is_stream(self) -> bool:
        return bool(self.yield_generator or self.stream)


class RawBody(ChatBody):
    """Texts, or conversations whose answers are shown as the model writes them."""

    written: ClassVar[Mapping[str, str]] = MappingProxyType(
        {**SAME, "n": "num_return_sequences", "stop_token_ids": "stop_words_list"}
    )
    nests: ClassVar[tuple[str, ...]] = CONFIGS
    cuts_limit: ClassVar[bool] = True  # RTP-LLM's clients send its default of 32000 along
    may_be_batch: ClassVar[bool] = True
    may_stream: ClassVar[bool] = True

    messages: list[Any] | None = None  # type: ignore[assignment]  # of one of `chats`
    texts: list[str] | None = None
    chats: dict[str, list[Any]] | None = None  # messages by the field that holds them
    shown: RawShown

    @classmethod
    def refused_tables(cls) -> tuple[Table, ...]:
        return ()  # prepared() does it: generate_config has fields, too

    @classmethod
    def typed_by(cls) -> tuple[type[BaseModel], ...]:
        return (RawRequest,)

    @classmethod
    def known_fields(cls) -> frozenset[str]:
        return frozenset((*RawRequest.model_fields, *REFUSED, *CONFIGS))

    @classmethod
    def prepared(cls, content: Mapping[str, Any], recalled: Recalled) -> dict[str, Any]:
        """
        Raises:
            InvalidRequestError: names the field.
        """
        raw = parse_body(RawRequest, _flat(content))
        texts, chats, batch = _prompts(raw)
        if raw.is_stream and not cls.may_stream:
            raise UnsupportedFieldError(
                "yield_generator is not supported here: POST / streams", param="yield_generator"
            )
        if raw.return_incremental and not raw.is_stream:
            raise InvalidRequestError("return_incremental needs yield_generator: true", param="return_incremental")
        body = {ours: getattr(raw, theirs) for ours, theirs in SAME.items()}
        if raw.max_new_tokens is None:
            body["max_tokens"] = raw.gen_length
        if raw.do_sample is False:
            body["temperature"] = 0.0
        if raw.reuse_cache is False or raw.enable_device_cache is False:
            body["cache_salt"] = secrets.token_hex(16)  # which nobody else has
        body |= {
            "texts": texts,
            "chats": chats,
            "n": raw.num_return_sequences or 1,
            "stream": raw.is_stream,
            "stop_token_ids": _stop_token_ids(raw.stop_words_list),
            "skip_special_tokens": bool(raw.skip_special_tokens),
            "separate_reasoning": False,
            "shown": RawShown(
                batch=batch,
                sequences=bool(raw.num_return_sequences),
                incremental=bool(raw.return_incremental),
                aux_info=raw.aux_info is not False,
                input_ids=bool(raw.return_input_ids or raw.output_input_ids),
                output_ids=bool(raw.return_output_ids),
                announces_end=not raw.stream,
            ),
        }
        return {name: value for name, value in body.items() if value is not None}

    def prompts(self) -> list[str | TokenIds] | None:
        return None if self.texts is None else list(self.texts)

    def conversations(self) -> Mapping[str, list[Any]]:
        return self.chats or {}

    def least_texts(self) -> list[str | TokenIds]:
        return super().least_texts() if self.texts is None else list(self.texts)

    def raw_shown(self) -> RawShown:
        return self.shown


class BatchInferBody(RawBody):
    """Of /batch_infer: prompt_batch, whole."""

    may_stream: ClassVar[bool] = False

    @classmethod
    def prepared(cls, content: Mapping[str, Any], recalled: Recalled) -> dict[str, Any]:
        if content.get("prompt_batch") is None:
            raise NoPromptError("prompt_batch is required", param="prompt_batch")
        return super().prepared(content, recalled)


def _flat(content: Mapping[str, Any]) -> dict[str, Any]:
    """With the fields of its generate_config, where it doesn't say them itself."""
    config: dict[str, Any] = {}
    for name in CONFIGS:
        if (value := content.get(name)) is None:
            continue
        if not isinstance(value, dict):
            raise InvalidRequestError(f"{name} must be an object, got {shortened(value)}", param=name, value=value)
        config = value | config
    own = {name: value for name, value in content.items() if value is not None and name not in CONFIGS}
    return {name: value for name, value in config.items() if name not in PROMPTS} | own


def _prompts(raw: RawRequest) -> tuple[list[str] | None, dict[str, Any] | None, bool]:
    """(texts, or conversations by the fields that hold them; whether they are a batch)."""
    given = [name for name in PROMPTS if getattr(raw, name) is not None]
    if not given:
        raise NoPromptError(f"one of {', '.join(PROMPTS)} is wanted", param="prompt")
    if len(given) > 1:
        raise InvalidRequestError(f"one of {', '.join(PROMPTS)} is wanted, got {' and '.join(given)}", param=given[1])
    [field] = given
    value = getattr(raw, field)
    if raw.request_format == CHAT_API and isinstance(value, str):
        value = _read(field, value)
    if field == "prompt_batch":
        return *_batch(value), True
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        [value] = value
    if isinstance(value, str):
        return [value], None, False
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return None, {field: value}, False
    more = ": several prompts come as prompt_batch" if isinstance(value, list) and len(value) > 1 else ""
    raise must_be(field, f"a text, or a conversation's messages{more}", value)


def _batch(prompts: list[Any]) -> tuple[list[str] | None, dict[str, Any] | None]:
    if not prompts:
        raise NoPromptError("prompt_batch must hold at least one prompt, got []", param="prompt_batch")
    if isinstance(prompts[0], dict):
        return None, {"prompt_batch": prompts}
    kind, name = (str, "a text") if isinstance(prompts[0], str) else (list, "a conversation's messages")
    for number, each in enumerate(prompts):
        if not isinstance(each, kind):
            raise must_be(f"prompt_batch[{number}]", name, each)
    if kind is str:
        return prompts, None
    return None, {f"prompt_batch[{number}]": each for number, each in enumerate(prompts)}


def _read(field: str, text: str) -> Any:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{field} is not valid JSON, as {CHAT_API} has it: {error}", param=field) from error


def _stop_token_ids(words: list[Any] | None) -> list[int] | None:
    ids = []
    for number, word in enumerate(words or ()):
        where = f"stop_words_list[{number}]"
        if not isinstance(word, list) or not word:
            raise must_be(where, "a list of token ids", word)
        if len(word) > 1:
            raise UnsupportedFieldError(
                f"{where} is not supported with more than one token id, got {shortened(word)}: stop_words_str may have it",
                param=where,
                value=word,
            )
        ids.append(TOKEN_ID.take(where, word[0]))
    return None if words is None else ids
