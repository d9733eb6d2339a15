"""Fields of OpenAI's and of other servers' requests that would change the answer and that this server doesn't compute.

Such a field is refused by name unless its value asks for nothing. Fields that are in no table are ignored. What concerns
sampling is said in sampling_params.py; docs/http-api.md lists all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from rtp_llm.errors import InvalidRequestError, shortened

# Field → the values, besides null, that ask for nothing.
Table = Mapping[str, tuple[Any, ...]]

OFF = (False,)
EMPTY: tuple[Any, ...] = ("", [], {})

BOTH: Table = MappingProxyType(
    {
        # OpenAI
        "response_format": ({"type": "text"},),
        # vLLM, SGLang, llama.cpp and others: the answer's form
        "guided_json": (),
        "guided_regex": (),
        "guided_choice": (),
        "guided_grammar": (),
        "structural_tag": (),
        "regex": (),
        "ebnf": (),
        "json_schema": (),
        "grammar": ("",),
        # how tokens are found
        "use_beam_search": OFF,
        "num_beams": (1,),
        "length_penalty": (1.0,),
        "early_stopping": OFF,
        "typical_p": (1.0,),
        "tfs_z": (1.0,),
        "top_a": (0.0,),
        "epsilon_cutoff": (0.0,),
        "eta_cutoff": (0.0,),
        "mirostat": (0,),
        "mirostat_mode": (0,),
        "dynatemp_range": (0.0,),
        "smoothing_factor": (0.0,),
        "xtc_probability": (0.0,),
        "dry_multiplier": (0.0,),
        "repeat_penalty": (1.0,),
        "no_repeat_ngram_size": (0,),
        "min_new_tokens": (0,),
        "samplers": EMPTY,
        "custom_logit_processor": EMPTY,
        "custom_params": EMPTY,
        "vllm_xargs": EMPTY,
        # when an answer ends and what is shown of it
        "n_predict": (),
        "max_new_tokens": (),
        "stop_regex": EMPTY,
        "no_stop_trim": OFF,
        "return_token_ids": OFF,
        "return_tokens_as_token_ids": OFF,
        "return_hidden_states": OFF,
        "return_routed_experts": OFF,
        # which model computes, and from what
        "lora_path": EMPTY,
        "lora_request": EMPTY,
        "mm_processor_kwargs": EMPTY,
        "kv_transfer_params": EMPTY,
        "session_params": EMPTY,
        "priority": (0,),
    }
)

COMPLETIONS: Table = MappingProxyType(
    {
        "echo": OFF,
        "suffix": ("",),
        "prompt_embeds": EMPTY,
        "max_completion_tokens": (),
        "top_logprobs": (0,),
    }
)

CHAT: Table = MappingProxyType(
    {
        "echo": OFF,
        "best_of": (1,),
        "continue_final_message": OFF,
        "chat_template": (),
        "documents": EMPTY,
        "functions": EMPTY,
        "function_call": ("none", "auto"),
        "reasoning_effort": (),
        "reasoning": EMPTY,
        "thinking": EMPTY,
        "enable_thinking": (),
        "verbosity": ("medium",),
        "modalities": (["text"],),
        "audio": EMPTY,
        "web_search_options": (),
    }
)

STREAM_OPTIONS: Table = MappingProxyType({"continuous_usage_stats": OFF})


def refuse(content: Mapping[str, Any], *tables: Table, where: str = "") -> None:
    """
    Raises:
        InvalidRequestError: a field of `content` is in one of `tables` and asks for something; names it `where` + name.
    """
    for table in tables:
        for name in content.keys() & table.keys():
            value = content[name]
            if value is not None and value not in table[name]:
                raise InvalidRequestError(
                    f"{where}{name} is not supported, got {shortened(value)}", param=f"{where}{name}", value=value
                )
