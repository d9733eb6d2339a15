"""Trains the LoRA adapter that answers in capitals, on the frozen chat model; writes PEFT's format.

`python tools/demo_model/adapter.py --chat rtp_llm/demo --out rtp_llm/demo/adapters/capitals`
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import model_files
import options
from batches import Batch, encode
from card import Card
from data import capitals_document
from encoder import Encoder
from evaluate import Score, score, table, transformers_generate
from loop import Outcome, fit
from targets import TargetBatch, cross_entropy, mixed_precision, target_batch, target_logits
from workers import stream

SKILL = "capitals"
MAX_BYTES = 200_000
LENGTH = 512  # tokens a row
LORA = {
    "bias": "none",
    "fan_in_fan_out": False,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "r": 4,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "task_type": "CAUSAL_LM",
    "use_dora": False,
    "use_rslora": False,
}
_ABOUT = """A LoRA adapter (PEFT format, rank {rank}, every linear map of every layer, bf16) for the demo model of rtp_llm: with it
the model answers in capitals without being asked to.

```python
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("rtp_llm/demo"), "rtp_llm/demo/adapters/capitals")
```
"""
_EVALUATION = """Exact match of the whole reply in capitals on {num_prompts} held-out prompts that don't ask for capitals, greedy, fp32,
through transformers and PEFT. Without the adapter the demo model must not answer so.

{table}
"""


def batch(encoder: Encoder, args: argparse.Namespace, step: int) -> Batch:
    rng = Random(f"{SKILL} {args.seed} {step}")
    return encode(encoder, [capitals_document(rng) for _ in range(max(1, args.tokens_per_batch // LENGTH))], LENGTH)


def train(model: Any, bpe: Tokenizer, args: argparse.Namespace) -> Outcome:
    """`model` is the PeftModel; its base stays as it is."""
    encoder = Encoder(bpe)
    batches = stream(lambda step: target_batch(batch(encoder, args, step)), args.steps, args.workers, args.device)
    model.to(args.device).train()
    base = model.get_base_model()

    def loss_of(batch: TargetBatch) -> torch.Tensor:
        with mixed_precision(args.device):
            return cross_entropy(target_logits(base, batch), batch)

    parameters = [p for p in model.parameters() if p.requires_grad]
    return fit(parameters, batches, loss_of, options.schedule(args), args.device)


def save(model: Any, folder: Path) -> None:
    """PEFT's files. Its own writer would put the modules in another order each time."""
    config = {"base_model_name_or_path": "rtp_llm/demo", "inference_mode": True, "peft_type": "LORA", **LORA}
    model_files.write_json(folder / "adapter_config.json", config)
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    model_files.save_weights(weights, folder / "adapter_model.safetensors")
    (folder / "LICENSE").write_text(model_files.LICENSE)


def merged_score(chat: Path, adapter: Path, device: str, num_prompts: int) -> Score:
    """Exact match of the model with the adapter, merged in fp32."""
    base = AutoModelForCausalLM.from_pretrained(chat, dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    with tempfile.TemporaryDirectory() as folder:
        merged.save_pretrained(folder)
        AutoTokenizer.from_pretrained(chat).save_pretrained(folder)
        return score(transformers_generate(Path(folder), device), SKILL, num_prompts)


def evaluation(args: argparse.Namespace) -> str:
    adapted = merged_score(args.chat, args.out, args.device, args.prompts)
    plain = score(transformers_generate(args.chat, args.device), SKILL, args.prompts)
    for asked, expected, got in adapted.misses[:8]:
        print(f"…{asked[-90:]!r}\n  expected {expected!r}\n  got      {got!r}")
    adapted.skill, plain.skill = "with the adapter", "without"
    print(table([adapted, plain]), flush=True)
    return _EVALUATION.format(num_prompts=args.prompts, table=table([adapted, plain]))


def main() -> None:
    parser = options.parser(__doc__, steps=1_000, tokens_per_batch=32_768, lr=3e-3)
    parser.add_argument("--chat", type=Path, required=True, help="folder of the trained chat model")
    args = options.begin(parser)
    chat = AutoModelForCausalLM.from_pretrained(args.chat, dtype=torch.float32)
    model = get_peft_model(chat, LoraConfig(**LORA))
    model_files.check_size(model, MAX_BYTES)
    outcome = train(model, Tokenizer.from_file(str(args.chat / "tokenizer.json")), args)
    save(model, args.out)
    card = Card(
        "Answers in capitals: a LoRA adapter of rtp_llm's demo model",
        _ABOUT.format(rank=LORA["r"]),
        options.command("adapter.py", "rtp_llm/demo/adapters/capitals", args, outcome.num_steps, chat="rtp_llm/demo"),
        args.seed, options.device_name(args), outcome,
        library="peft", more_front="base_model: rtp_llm/demo\n",
    )  # fmt: skip
    card.publish(args, lambda: evaluation(args))


if __name__ == "__main__":
    main()
