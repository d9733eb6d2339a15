"""Fields of OpenAI's and of other servers' requests that would change the answer and that this server doesn't compute.

Such a field is refused by name unless its value asks for nothing. Fields that are in no table are ignored. What concerns
sampling is said in sampling_params.py; docs/http-api.md lists all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from rtp_llm.errors import UnsupportedFieldError, shortened
from rtp_llm.sampling_params import is_among

# Field → the values, besides null, that ask for nothing.
Table = Mapping[str, tuple[Any, ...]]

OFF = (False,)
ON = (True,)
EMPTY: tuple[Any, ...] = ("", [], {})
NO_CHOICE: tuple[Any, ...] = ("none", "auto")

BOTH: Table = MappingProxyType(
    {
        # OpenAI
        "response_format": ({"type": "text"},),
        # vLLM, SGLang, llama.cpp, TGI, Transformers and others: the answer's form
        "guided_json": (),
        "guided_regex": (),
        "guided_choice": (),
        "guided_grammar": (),
        "structural_tag": (),
        "regex": (),
        "ebnf": (),
        "json_schema": (),
        "grammar": ("",),
        "n_indent": (0,),
        # how tokens are found
        "do_sample": ON,
        "num_return_sequences": (1,),
        "use_beam_search": OFF,
        "num_beams": (1,),
        "num_beam_groups": (1,),
        "beam_width": (1,),
        "diversity_penalty": (0.0,),
        "length_penalty": (1.0,),
        "early_stopping": OFF,
        "penalty_alpha": (0.0,),
        "typical_p": (1.0,),
        "tfs_z": (1.0,),
        "top_a": (0.0,),
        "top_n_sigma": (-1, 0),
        "nsigma": (0.0,),
        "skew": (0.0,),
        "epsilon_cutoff": (0.0,),
        "eta_cutoff": (0.0,),
        "mirostat": (0,),
        "mirostat_mode": (0,),
        "dynatemp_range": (0.0,),
        "smoothing_factor": (0.0,),
        "temperature_last": OFF,
        "xtc_probability": (0.0,),
        "dry_multiplier": (0.0,),
        "repeat_penalty": (1.0,),
        "encoder_repetition_penalty": (1.0,),
        "exponential_decay_length_penalty": (),
        "no_repeat_ngram_size": (0,),
        "repetition_ngram_size": (0,),
        "guidance_scale": (1.0,),
        "cfg_scale": (1.0,),
        "negative_prompt": EMPTY,
        "watermark": OFF,
        "min_new_tokens": (0,),
        "min_length": (0,),
        "samplers": EMPTY,
        "sampler_priority": EMPTY,
        "custom_logit_processor": EMPTY,
        "custom_params": EMPTY,
        "vllm_xargs": EMPTY,
        "random_seed": (),
        # which tokens may come
        "bad_words_ids": EMPTY,
        "banned_strings": EMPTY,
        "banned_tokens": EMPTY,
        "custom_token_bans": EMPTY,
        "ban_eos_token": OFF,
        "suppress_tokens": EMPTY,
        "sequence_bias": EMPTY,
        "embedding_bias": EMPTY,
        # when an answer ends and what is shown of it
        "n_predict": (),
        "max_new_tokens": (),
        "max_length": (),
        "max_time": (),
        "t_max_predict_ms": (-1, 0),
        "eos_token_id": (),
        "stop_strings": EMPTY,
        "stop_sequences": EMPTY,
        "stop_regex": EMPTY,
        "no_stop_trim": OFF,
        "reasoning_format": ("none",),
        "return_tokens": OFF,
        "return_full_text": OFF,
        "return_hidden_states": OFF,
        "return_routed_experts": OFF,
        "return_context_logits": OFF,
        "return_generation_logits": OFF,
        "n_probs": (0,),
        "top_n_tokens": (0,),
        "decoder_input_details": OFF,
        # which model computes, and from what
        "adapter_id": EMPTY,
        "lora": EMPTY,
        "lora_name": EMPTY,
        "lora_path": EMPTY,
        "lora_request": EMPTY,
        "mm_processor_kwargs": EMPTY,
        "prompt_embeds": EMPTY,
        "suffix": ("",),
        "truncate": (),
        "prompt_truncate_len": (),
        "context_length_exceeded_behavior": ("error",),
        "transforms": EMPTY,
        "plugins": EMPTY,
        "safe_prompt": OFF,
        "token_healing": OFF,
        "add_bos_token": ON,
        "extra_key": EMPTY,
        "kv_transfer_params": EMPTY,
        "disaggregated_params": EMPTY,
        "session_params": EMPTY,
    }
)

# Where no prompt is answered, or OpenAI has another word for it.
TRUNCATION: Table = MappingProxyType({"truncate_prompt_tokens": (), "truncation_side": ()})

COMPLETIONS: Table = MappingProxyType(
    {
        "include_reasoning": ON,
        "separate_reasoning": ON,
        "echo": OFF,
        "messages": EMPTY,
        "max_completion_tokens": (),
        "top_logprobs": (0,),
        "tools": EMPTY,
        "tool_choice": NO_CHOICE,
        "functions": EMPTY,
        "function_call": NO_CHOICE,
        "chat_template": (),
        "documents": EMPTY,
        "reasoning_effort": (),
    }
)

CHAT: Table = MappingProxyType(
    {
        "echo": OFF,
        "prompt": EMPTY,
        "best_of": (1,),
        "chat_template": (),
        "functions": EMPTY,
        "function_call": NO_CHOICE,
        "reasoning": EMPTY,
        "thinking": EMPTY,
        "verbosity": ("medium",),
        "modalities": (["text"],),
        "audio": EMPTY,
        "web_search_options": (),
    }
)

RESPONSES: Table = MappingProxyType(
    {
        **{name: values for name, values in CHAT.items() if name != "reasoning"},
        # a chat's fields that are called otherwise here, or that responses have no place for
        "messages": EMPTY,
        "max_tokens": (),
        "max_completion_tokens": (),
        "reasoning_effort": (),
        "logprobs": OFF,
        "n": (1,),
        "return_token_ids": OFF,
        **TRUNCATION,
        # OpenAI
        "background": OFF,
        "truncation": ("disabled",),
        "conversation": (),
        "context_management": EMPTY,
        "moderation": EMPTY,
        # vLLM
        "previous_input_messages": EMPTY,
        "previous_response": EMPTY,
        "enable_response_messages": OFF,
    }
)


def refuse(content: Mapping[str, Any], *tables: Table) -> None:
    """
    Raises:
        UnsupportedFieldError: a field of `content` is in one of `tables` and asks for something; names it.
    """
    for table in tables:
        for name in content.keys() & table.keys():
            value = content[name]
            if value is not None and not is_among(value, table[name]):
                raise UnsupportedFieldError(f"{name} is not supported, got {shortened(value)}", param=name, value=value)
