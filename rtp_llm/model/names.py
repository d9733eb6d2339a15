"""Which slot of the engine a tensor of a checkpoint fills, per architecture."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from rtp_llm.model.config import ModelConfig

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

# Buffers that old checkpoints store: rotary frequencies, causal masks. The engine computes them.
_COMPUTED = re.compile(
    r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.((original_)?inv_freq|cos_cached|sin_cached)"
    r"|model\.layers\.\d+\.self_attn\.(masked_)?bias"
)


def _decoder_slot(config: ModelConfig, name: str, names: Collection[str]) -> str | None:
    """Llama and Qwen3: the engine's slots have the names of the file. A tied matrix may be stored under either of its names."""
    if _COMPUTED.fullmatch(name):
        return None
    if config.tie_word_embeddings and name == HEAD:
        return None if EMBEDDING in names else EMBEDDING
    return name


SLOT_NAMES: dict[str, Callable[[ModelConfig, str, Collection[str]], str | None]] = {
    "LlamaForCausalLM": _decoder_slot,
    "Qwen3ForCausalLM": _decoder_slot,
}


def slot_name(config: ModelConfig, name: str, names: Collection[str]) -> str | None:
    """The engine's name for the checkpoint's tensor `name`, one of `names`; None if the engine has no use for it."""
    return SLOT_NAMES[config.architecture](config, name, names)
