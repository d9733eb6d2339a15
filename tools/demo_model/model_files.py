"""The language models' shapes, and their ordinary Hugging Face files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from batches import MAX_LENGTH
from data import END_OF_TEXT, END_OF_TURN

Config = dict[str, Any]
LICENSE = """The files of this folder (weights, tokenizer, configuration, model card) are part of rtp_llm and come under
the Apache License, Version 2.0, like the rest of the project: https://www.apache.org/licenses/LICENSE-2.0
They were trained from scratch on text of the generator in tools/demo_model; no outside text or weights went in.
SPDX-License-Identifier: Apache-2.0
"""


def _qwen3(tokenizer: Tokenizer, *, layers: int, hidden: int, inner: int, heads: int, head_dim: int) -> Config:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id(END_OF_TURN),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": inner,
        "max_position_embeddings": MAX_LENGTH,
        "max_window_layers": layers,
        "model_type": "qwen3",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": 2,
        "pad_token_id": tokenizer.token_to_id(END_OF_TEXT),
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": tokenizer.get_vocab_size(),
    }


def chat_config(tokenizer: Tokenizer, layers: int = 6, hidden: int = 256, inner: int = 448) -> Config:
    return _qwen3(tokenizer, layers=layers, hidden=hidden, inner=inner, heads=hidden // 64, head_dim=64)


def draft_config(tokenizer: Tokenizer) -> Config:
    return _qwen3(tokenizer, layers=2, hidden=128, inner=352, heads=4, head_dim=32)


def moe_config(tokenizer: Tokenizer) -> Config:
    num_experts, experts_per_token, inner = 8, 2, 48
    config = _qwen3(
        tokenizer, layers=4, hidden=192, inner=experts_per_token * inner, heads=6, head_dim=32
    )  # fmt: skip
    return config | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": inner,
        "norm_topk_prob": True,
        "num_experts": num_experts,
        "num_experts_per_tok": experts_per_token,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    }


def new_model(config: Config) -> nn.Module:
    """fp32, freshly initialised from torch's global seed."""
    settings = {name: value for name, value in config.items() if name != "torch_dtype"}
    if config["model_type"] == "qwen3_moe":
        return Qwen3MoeForCausalLM(Qwen3MoeConfig(**settings, attn_implementation="sdpa"))
    return Qwen3ForCausalLM(Qwen3Config(**settings, attn_implementation="sdpa"))


def millions(model: nn.Module) -> float:
    """Parameters."""
    return sum(p.numel() for p in model.parameters()) / 1e6


def check_size(model: nn.Module, max_bytes: int, bytes_per_value: int = 2) -> None:
    """Raises ValueError when the weights' file would be larger than `max_bytes`."""
    tensors = [p for p in model.parameters() if p.requires_grad]
    size = sum(p.numel() for p in tensors) * bytes_per_value + 150 * len(tensors)
    if size > max_bytes:
        raise ValueError(f"the weights take about {size:,} bytes, {max_bytes:,} are allowed")
    print(f"{sum(p.numel() for p in tensors) / 1e6:.2f} M parameters, {size / 1e6:.2f} MB", flush=True)


def save(config: Config, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Writes config, generation config, licence and the bf16 weights (the tied head only once)."""
    write_json(folder / "config.json", config)
    end, pad = config["eos_token_id"], config["pad_token_id"]
    write_json(folder / "generation_config.json", {"do_sample": False, "eos_token_id": [end, pad], "pad_token_id": pad})
    (folder / "LICENSE").write_text(LICENSE)
    save_weights({n: t for n, t in weights.items() if n != "lm_head.weight"}, folder / "model.safetensors")


def save_weights(weights: dict[str, torch.Tensor], path: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    converted = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in sorted(weights.items())}
    save_file(converted, path, metadata={"format": "pt"})
    path.chmod(0o644)


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
