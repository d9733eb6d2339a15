"""Trains the tiny mixture-of-experts sibling: `python tools/demo_model/moe.py --out rtp_llm/demo/moe`."""

from __future__ import annotations

import argparse
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import model_files
import options
import report
import tokenizer
from batches import MAX_LENGTH, BatchPlan
from card import Card
from loop import Outcome, compile_layers, fit
from targets import TargetBatch, cross_entropy, mixed_precision, target_logits, training_batches

MAX_BYTES = 4_000_000
BALANCE = 0.01  # weight of the load-balancing loss
_ABOUT = """A tiny mixture of experts (Qwen3-MoE architecture, {num_experts} experts of which each token uses {per_token}, {millions:.2f} M parameters,
bf16) with the tokenizer and the training text of rtp_llm's demo model: a stand-in for tests of that architecture.
It is smaller than the demo model and answers worse; nothing is promised of its answers.
"""


def dense_block(block: Any, hidden: torch.Tensor) -> torch.Tensor:
    """What transformers' block computes, as one gated MLP of all experts: the gate's shares are 0 where it didn't choose.

    hidden [rows, length, features]. Leaves the block's load-balancing loss in `block.balance`.
    """
    experts, gate = block.experts, block.gate
    num = experts.num_experts
    probabilities = functional.linear(hidden, gate.weight).float().softmax(-1)
    top, chosen = probabilities.topk(gate.top_k, -1)
    shares = torch.zeros_like(probabilities).scatter(-1, chosen, top / top.sum(-1, keepdim=True))
    # The loss of Switch Transformer (arXiv:2101.03961, equations 4 to 6), for top_k choices a token.
    load = (shares > 0).flatten(0, -2).float().mean(0)
    block.balance = num * (load * probabilities.flatten(0, -2).mean(0)).sum()
    both = functional.linear(hidden, experts.gate_up_proj.flatten(0, 1)).unflatten(-1, (num, 2, -1))
    inner = functional.silu(both[..., 0, :]) * both[..., 1, :] * shares.to(both.dtype).unsqueeze(-1)
    return functional.linear(inner.flatten(-2), experts.down_proj.transpose(0, 1).flatten(1))


def make_dense(model: nn.Module) -> None:
    """Lets the forward pass of every block run through `dense_block`."""
    for layer in model.model.layers:
        layer.mlp.forward = MethodType(dense_block, layer.mlp)


def released_layout(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights under the names of released Qwen3-MoE checkpoints: one set of matrices per expert."""
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        place, _, fused = name.rpartition(".")
        for i, matrix in enumerate(tensor if place.endswith(".experts") else ()):
            if fused == "gate_up_proj":
                gate, up = matrix.chunk(2)
                weights |= {f"{place}.{i}.gate_proj.weight": gate, f"{place}.{i}.up_proj.weight": up}
            else:
                weights[f"{place}.{i}.{fused}.weight"] = matrix
        if not place.endswith(".experts"):
            weights[name] = tensor
    return weights


def train(model: nn.Module, plan: BatchPlan, args: argparse.Namespace) -> Outcome:
    batches = training_batches(plan, args)
    model.to(args.device).train()
    make_dense(model)
    if args.compile:
        compile_layers(*model.model.layers)

    def loss_of(batch: TargetBatch) -> torch.Tensor:
        with mixed_precision(args.device):
            loss = cross_entropy(target_logits(model, batch), batch)
        balance = torch.stack([layer.mlp.balance for layer in model.model.layers]).mean()
        return loss + BALANCE * balance

    return fit(list(model.parameters()), batches, loss_of, options.schedule(args), args.device)


def main() -> None:
    args = options.begin(options.parser(__doc__, steps=7_300, tokens_per_batch=131_072, lr=2e-3))
    bpe = tokenizer.train(args.seed)
    tokenizer.save(bpe, args.out, MAX_LENGTH)
    config = model_files.moe_config(bpe)
    model = model_files.new_model(config)
    model_files.check_size(model, MAX_BYTES)
    outcome = train(model, BatchPlan(bpe.to_str(), args.seed, args.tokens_per_batch), args)
    model_files.save(config, released_layout(model), args.out)
    card = Card(
        "The mixture-of-experts sibling of rtp_llm's demo model",
        _ABOUT.format(
            millions=model_files.millions(model), num_experts=config["num_experts"],
            per_token=config["num_experts_per_tok"],
        ),
        options.command("moe.py", "rtp_llm/demo/moe", args, outcome.num_steps),
        args.seed, options.device_name(args), outcome,
        loss=f"cross-entropy per answer token + {BALANCE} x load balancing",
    )  # fmt: skip
    card.publish(args, lambda: report.skills(args.out, args.device, args.prompts))


if __name__ == "__main__":
    main()
