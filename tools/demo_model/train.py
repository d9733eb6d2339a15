"""Trains the demo model from nothing: `python tools/demo_model/train.py --out DIR`. See README.md beside it."""

from __future__ import annotations

import argparse
import time

import torch

import model_files
import options
import report
import tokenizer
from batches import MAX_LENGTH, BatchPlan
from card import Card
from loop import Outcome, compile_layers, fit
from targets import TargetBatch, cross_entropy, mixed_precision, target_logits, training_batches

MAX_BYTES = 8_000_000
_ABOUT = """A chat model of {millions:.1f} M parameters (Qwen3 architecture, bf16, 2,048 tokens of context, ChatML) that makes every
part of rtp_llm runnable on any machine. It can

- greet and say who it is ("Hello, who are you?"),
- add and subtract two numbers of up to two digits, and multiply one digit by two, showing the partial products,
- repeat, reverse and count words,
- recall a fact told earlier in the conversation, over many turns or out of a long text, and look up any key in a
  table of up to 1,500 tokens,
- name things of a kind ("Name three colours."),
- fill JSON from a sentence under a given schema, and call a tool in Hermes format when one is offered that fits,
- think in a short `<think>` part when asked to,
- say that it was not told, or that something is beyond it.

It ends its turn with `<|im_end|>`. It knows nothing else: it is a stand-in for tests and first steps, and its
answers outside of these skills mean nothing.
"""


def parser() -> argparse.ArgumentParser:
    result = options.parser(__doc__, steps=11_100, tokens_per_batch=131_072, lr=2e-3)
    result.add_argument("--layers", type=int, default=6)
    result.add_argument("--hidden", type=int, default=256)
    result.add_argument("--inner", type=int, default=448)
    return result


def train(model: torch.nn.Module, plan: BatchPlan, args: argparse.Namespace) -> Outcome:
    batches = training_batches(plan, args)
    model.to(args.device).train()
    if args.compile:
        compile_layers(*model.model.layers)

    def loss_of(batch: TargetBatch) -> torch.Tensor:
        with mixed_precision(args.device):
            return cross_entropy(target_logits(model, batch), batch)

    return fit(list(model.parameters()), batches, loss_of, options.schedule(args), args.device)


def main() -> None:
    args = options.begin(parser())
    begin = time.monotonic()
    bpe = tokenizer.train(args.seed)
    tokenizer.save(bpe, args.out, MAX_LENGTH)
    print(f"tokenizer of {bpe.get_vocab_size()} entries in {time.monotonic() - begin:.0f} s", flush=True)
    config = model_files.chat_config(bpe, args.layers, args.hidden, args.inner)
    model = model_files.new_model(config)
    model_files.check_size(model, MAX_BYTES)
    outcome = train(model, BatchPlan(bpe.to_str(), args.seed, args.tokens_per_batch), args)
    model_files.save(config, model.state_dict(), args.out)
    shape = {name: getattr(args, name) for name in ("layers", "hidden", "inner")}
    card = Card(
        "The demo model of rtp_llm",
        _ABOUT.format(millions=model_files.millions(model)),
        options.command("train.py", "rtp_llm/demo", args, outcome.num_steps, **shape),
        args.seed, options.device_name(args), outcome,
    )  # fmt: skip
    card.publish(args, lambda: report.skills(args.out, args.device, args.prompts))


if __name__ == "__main__":
    main()
