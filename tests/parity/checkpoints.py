"""Fresh random checkpoints of both families, other seeds and sizes than the committed references."""

from pathlib import Path

from transformers import PreTrainedModel

from tools.references import VARIANTS, build, save

SEED = 1000
SIZES = {
    "qwen3_untied": {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2},
    "llama_untied": {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 3},
}


def fresh(name: str, directory: Path) -> PreTrainedModel:
    model = build(name, SEED + list(VARIANTS).index(name), **SIZES.get(name, {}))
    save(model, directory)
    return model
