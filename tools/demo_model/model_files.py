"""The model's shape, and its ordinary Hugging Face files."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from batches import MAX_LENGTH
from tokenizer import VOCAB_SIZE

CONFIG: dict[str, object] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "eos_token_id": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 448,
    "max_position_embeddings": MAX_LENGTH,
    "max_window_layers": 6,
    "model_type": "qwen3",
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": VOCAB_SIZE,
}
GENERATION_CONFIG = {"do_sample": False, "eos_token_id": [2, 0], "pad_token_id": 0}
LICENSE = """The files of this folder (weights, tokenizer, configuration, model card) are part of rtp_llm and come under
the Apache License, Version 2.0, like the rest of the project: https://www.apache.org/licenses/LICENSE-2.0
They were trained from scratch on text of the generator in tools/demo_model; no outside text or weights went in.
SPDX-License-Identifier: Apache-2.0
"""


def new_model() -> Qwen3ForCausalLM:
    """fp32, freshly initialised from torch's global seed."""
    settings = {name: value for name, value in CONFIG.items() if name != "torch_dtype"}
    return Qwen3ForCausalLM(Qwen3Config(**settings, attn_implementation="sdpa"))


def save(model: Qwen3ForCausalLM, folder: Path) -> None:
    """Writes config, generation config, licence and the bf16 weights (the tied head only once)."""
    _write_json(folder / "config.json", CONFIG)
    _write_json(folder / "generation_config.json", GENERATION_CONFIG)
    (folder / "LICENSE").write_text(LICENSE)
    weights = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in sorted(model.state_dict().items())
        if name != "lm_head.weight"
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
