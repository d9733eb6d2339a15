"""Which slot of the engine a tensor of a checkpoint fills, per architecture."""

from __future__ import annotations

import re
from collections.abc import Callable

from rtp_llm.model.config import ModelConfig

# Buffers that old checkpoints store; the engine computes them.
_COMPUTED = re.compile(r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def _decoder_slot(config: ModelConfig, name: str) -> str | None:
    """Llama and Qwen3: the engine's slots have the names of the file."""
    if _COMPUTED.fullmatch(name) or (config.tie_word_embeddings and name == "lm_head.weight"):
        return None
    return name


SLOT_NAMES: dict[str, Callable[[ModelConfig, str], str | None]] = {
    "LlamaForCausalLM": _decoder_slot,
    "Qwen3ForCausalLM": _decoder_slot,
}


def slot_name(config: ModelConfig, name: str) -> str | None:
    """The engine's name for the checkpoint's tensor `name`; None if the engine has no use for it."""
    return SLOT_NAMES[config.architecture](config, name)
