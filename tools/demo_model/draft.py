"""Trains the draft model: `python tools/demo_model/draft.py --chat rtp_llm/demo --out rtp_llm/demo/draft`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import AutoModelForCausalLM

import agreement
import model_files
import options
import tokenizer
from batches import MAX_LENGTH, BatchPlan
from card import Card
from data import SKILLS
from loop import Outcome, compile_layers, fit
from targets import TargetBatch, cross_entropy, mixed_precision, target_logits, training_batches

MAX_BYTES = 1_500_000
_ABOUT = """A draft model for speculative decoding with the demo model of rtp_llm: {millions:.2f} M parameters (Qwen3 architecture,
two layers, bf16), the same tokenizer and the same text. By itself it answers much worse.
"""
_EVALUATION = """Share of tokens for which the draft's greedy choice is the demo model's own, teacher-forced on the demo model's greedy
replies to held-out prompts ({num_prompts} a skill), fp32, through transformers.
`python tools/demo_model/agreement.py` prints this table.

{table}
"""


def train(
    model: torch.nn.Module, chat: torch.nn.Module, plan: BatchPlan, args: argparse.Namespace
) -> Outcome:  # fmt: skip
    """Cross-entropy, and the divergence from the chat model's distribution at the same targets."""
    batches = training_batches(plan, args)
    model.to(args.device).train()
    chat.to(args.device).eval().requires_grad_(False)
    if args.compile:
        compile_layers(*model.model.layers, *chat.model.layers)

    def loss_of(batch: TargetBatch) -> torch.Tensor:
        with mixed_precision(args.device):
            with torch.no_grad():
                wanted = functional.log_softmax(target_logits(chat, batch).float(), -1)
            logits = target_logits(model, batch)
            given = functional.log_softmax(logits.float(), -1)
            divergence = functional.kl_div(given, wanted, reduction="batchmean", log_target=True)
            return cross_entropy(logits, batch) + divergence

    return fit(list(model.parameters()), batches, loss_of, options.schedule(args), args.device)


def evaluation(args: argparse.Namespace) -> str:
    pair = agreement.Pair(args.chat, args.out, args.device, batch_size=256 if args.device == "cuda" else 32)
    table = agreement.table(pair.agreements(SKILLS, args.prompts))
    print(table, flush=True)
    return _EVALUATION.format(num_prompts=args.prompts, table=table)


def main() -> None:
    parser = options.parser(__doc__, steps=4_500, tokens_per_batch=131_072, lr=3e-3)
    parser.add_argument("--chat", type=Path, required=True, help="folder of the trained chat model")
    args = options.begin(parser)
    bpe = Tokenizer.from_file(str(args.chat / "tokenizer.json"))
    tokenizer.save(bpe, args.out, MAX_LENGTH)
    config = model_files.draft_config(bpe)
    model = model_files.new_model(config)
    model_files.check_size(model, MAX_BYTES)
    chat = AutoModelForCausalLM.from_pretrained(args.chat, dtype=torch.float32)
    outcome = train(model, chat, BatchPlan(bpe.to_str(), args.seed, args.tokens_per_batch), args)
    model_files.save(config, model.state_dict(), args.out)
    card = Card(
        "The draft model of rtp_llm's demo model",
        _ABOUT.format(millions=model_files.millions(model)),
        options.command("draft.py", "rtp_llm/demo/draft", args, outcome.num_steps, chat="rtp_llm/demo"),
        args.seed, options.device_name(args), outcome,
        loss="cross-entropy per answer token + divergence from the demo model",
    )  # fmt: skip
    card.publish(args, lambda: evaluation(args))


if __name__ == "__main__":
    main()
