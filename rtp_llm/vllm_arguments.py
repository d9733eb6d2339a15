"""Arguments of vLLM's LLM, generate and chat that this package doesn't take itself: they change no answer, or they are refused
by name unless they ask for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from rtp_llm.errors import InvalidRequestError, shortened
from rtp_llm.sampling_params import is_among

# Argument → the values, besides None, that ask for nothing. None in place of them: how vLLM runs, not what it answers.
Table = Mapping[str, "tuple[Any, ...] | None"]

LLM: Table = MappingProxyType(
    {
        "tensor_parallel_size": (1,),
        "pipeline_parallel_size": (1,),
        "data_parallel_size": (1,),
        "enable_expert_parallel": (False,),
        "tokenizer_mode": ("auto",),
        "quantization": (),
        "code_revision": (),
        "tokenizer_revision": (),
        "hf_config_path": (),
        "hf_overrides": ({},),
        "chat_template": (),
        "generation_config": ("auto",),
        "override_generation_config": ({},),
        "logits_processors": ([],),
        "speculative_config": ({},),
        "enable_lora": (False,),
        "enable_prompt_embeds": (False,),
        "enable_return_routed_experts": (False,),
        "limit_mm_per_prompt": ({},),
        "mm_processor_kwargs": ({},),
        "allowed_local_media_path": ("",),
        "rope_scaling": ({},),
        "rope_theta": (),
        "disable_sliding_window": (False,),
        "task": ("auto", "generate"),
        "runner": ("auto", "generate"),
        "convert": ("auto", "none"),
        "pooler_config": (),
        "scheduling_policy": ("fcfs",),
        "trust_remote_code": None,  # no code of a model is ever run
        "gpu_memory_utilization": None,
        "swap_space": None,
        "cpu_offload_gb": None,
        "enforce_eager": None,
        "enable_chunked_prefill": None,
        "async_scheduling": None,
        "max_seq_len_to_capture": None,
        "max_logprobs": None,
        "compilation_config": None,
        "attention_config": None,
        "attention_backend": None,
        "profiler_config": None,
        "distributed_executor_backend": None,
        "disable_custom_all_reduce": None,
        "disable_log_stats": None,
        "served_model_name": None,
        "enable_sleep_mode": (False,),
        "model_impl": ("auto",),
        "config_format": ("auto",),
        "ignore_patterns": ([],),
        "model_loader_extra_config": ({},),
        "override_pooler_config": ({},),
        "kv_transfer_config": ({},),
        "kv_events_config": ({},),
        "additional_config": ({},),
        "calculate_kv_scales": (False,),
        "cpu_offload_params": ([],),
        "lora_modules": ({}, []),
        "max_loras": None,  # of no use without enable_lora
        "max_lora_rank": None,
        "fully_sharded_loras": None,
        "worker_cls": ("auto",),
        "worker_extension_cls": ("",),
        "scheduler_cls": (),
        "structured_outputs_config": None,  # how a grammar is followed; which is asked for, a request says
        "guided_decoding_backend": None,
        "reasoning_parser": ("",),  # answers' texts come as they are
        "preemption_mode": None,
        "num_lookahead_slots": (0,),
        "max_num_partial_prefills": None,
        "max_long_partial_prefills": None,
        "long_prefill_token_threshold": None,
        "max_parallel_loading_workers": None,
        "ray_workers_use_nsight": (False,),
        "cuda_graph_sizes": None,
        "disable_cascade_attn": None,
        "disable_log_requests": None,
        "disable_hybrid_kv_cache_manager": None,
        "prefix_caching_hash_algo": None,
        "otlp_traces_endpoint": (),
        "collect_detailed_traces": (),
        "show_hidden_metrics_for_version": None,
        "hf_token": None,
        "download_dir": None,
        "use_tqdm_on_load": None,
    }
)

GENERATE: Table = MappingProxyType({"use_tqdm": None, "lora_request": ()})

CHAT: Table = MappingProxyType(
    {
        "use_tqdm": None,
        "lora_request": (),
        "chat_template_content_format": ("auto",),
        "mm_processor_kwargs": ({},),
    }
)

TOKENIZATION: Table = MappingProxyType({"truncation": (False,), "max_length": ()})

# Of a prompt that is a dictionary.
PROMPT: Table = MappingProxyType(
    {
        "multi_modal_data": ({},),
        "multi_modal_uuids": ({},),
        "mm_processor_kwargs": ({},),
        "prompt_embeds": (),
        "encoder_prompt": (),
        "decoder_prompt": (),
    }
)


def check(call: str, given: Mapping[str, Any], table: Table) -> None:
    """
    Raises:
        InvalidRequestError: an argument asks for what isn't computed; names it and its value.
        TypeError: no argument of `call` has this name.
    """
    for name, value in given.items():
        if name not in table:
            raise TypeError(f"{call} got an unexpected keyword argument {name!r}")
        neutral = table[name]
        if neutral is not None and value is not None and not is_among(value, neutral):
            raise InvalidRequestError(
                f"{call}: {name} is not supported, got {shortened(value)}", param=name, value=value
            )
