"""Makes tests/references: tiny random checkpoints of each family, and what transformers computes with them.

    python tools/references.py [DIRECTORY]

One folder a variant: config.json and model.safetensors as transformers writes them, and reference.json: for each prompt
transformers' greedy tokens, and for every position of prompt + tokens the logprobs of the next token and of the highest
ones, all in fp32 on the CPU. `make test` compares the engine with these files; it needs no torch then.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

DIRECTORY = Path(__file__).resolve().parent.parent / "tests" / "references"
PROMPT_LENGTHS = (1, 7, 40, 90)
NEW_TOKENS = 24
TOP = 3  # highest logprobs kept a position

SMALL: dict[str, Any] = {
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,  # answers run to their full length
    "pad_token_id": None,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

# name → (model class, config class, fields that differ from SMALL)
VARIANTS: dict[str, tuple[type[PreTrainedModel], type, dict[str, Any]]] = {
    "qwen3_untied": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16}),
    "qwen3_tied": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 8, "tie_word_embeddings": True}),
    "qwen3_biases": (
        Qwen3ForCausalLM,
        Qwen3Config,
        {"head_dim": 12, "attention_bias": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "llama_untied": (LlamaForCausalLM, LlamaConfig, {"rms_norm_eps": 1e-5}),
    "llama_tied": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama_biases": (
        LlamaForCausalLM,
        LlamaConfig,
        {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
    ),
    "llama_llama3_rope": (LlamaForCausalLM, LlamaConfig, {"head_dim": 16, "rope_parameters": LLAMA3_ROPE}),
}


def build(name: str, seed: int, **fields: Any) -> PreTrainedModel:
    """A random model of the variant in fp32; `fields` override its config."""
    model_class, config_class, own = VARIANTS[name]
    torch.manual_seed(seed)
    config = config_class(**{**SMALL, **own, **fields})
    config._attn_implementation = "eager"
    model = model_class(config).to(torch.float32).eval()
    spread(model)
    return model


@torch.no_grad()
def spread(model: PreTrainedModel) -> None:
    """Values of such a size that every part of a layer matters and the next token is rarely a near tie."""
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.normal_(1.0, 0.2)
        elif name.endswith("bias"):
            parameter.normal_(0.0, 0.3)
        else:
            parameter.normal_(0.0, 1.5 / parameter.shape[-1] ** 0.5)


def prompts(vocab_size: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]


@torch.no_grad()
def logprobs_of(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """[tokens, vocab]: log-softmax of the raw logits after each token."""
    return torch.log_softmax(model(torch.tensor([tokens])).logits[0].float(), dim=-1)


@torch.no_grad()
def greedy(model: PreTrainedModel, prompt: list[int], count: int = NEW_TOKENS) -> list[int]:
    """Greedy tokens, each from a forward pass over all tokens so far: no cache that could differ."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logprobs_of(model, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def reference(model: PreTrainedModel, prompt: list[int]) -> dict[str, Any]:
    """What transformers computes for one prompt, teacher-forced on its own greedy tokens."""
    output = greedy(model, prompt)
    tokens = prompt + output
    logprobs = logprobs_of(model, tokens)
    top = logprobs.topk(TOP, dim=-1)
    return {
        "prompt": prompt,
        "output": output,
        # Of tokens[i + 1] after tokens[: i + 1].
        "logprobs": [round(float(logprobs[i, token]), 6) for i, token in enumerate(tokens[1:])],
        "top_tokens": top.indices.tolist(),
        "top_logprobs": [[round(value, 6) for value in row] for row in top.values.tolist()],
    }


def save(model: PreTrainedModel, directory: Path) -> None:
    model.save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else DIRECTORY
    for seed, name in enumerate(VARIANTS):
        model = build(name, seed)
        directory = root / name
        save(model, directory)
        cases = [reference(model, prompt) for prompt in prompts(model.config.vocab_size, seed)]
        text = json.dumps({"seed": seed, "cases": cases}, separators=(",", ":"))
        (directory / "reference.json").write_text(text + "\n")
        size = sum(path.stat().st_size for path in directory.iterdir())
        print(f"{directory}: {size / 1000:.0f} kB, output {cases[-1]['output'][:8]} ...")


if __name__ == "__main__":
    main()
