"""Trains the demo model from nothing: `python tools/demo_model/train.py --out DIR`. See README.md beside it."""

from __future__ import annotations

import argparse
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import Qwen3ForCausalLM

import card
import model_files
import tokenizer
from batches import IGNORED, MAX_LENGTH, Batch, BatchPlan, stream
from data import SKILLS
from evaluate import score, table, transformers_generate

WARMUP_STEPS = 200
WEIGHT_DECAY = 0.1


@dataclass
class Outcome:
    final_loss: float  # mean over the last 50 steps
    num_tokens: int
    seconds: float


def learning_rate(step: int, num_steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine to zero."""
    warmup = min(WARMUP_STEPS, num_steps // 10 + 1)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))


def optimizer_for(model: Qwen3ForCausalLM, device: str) -> torch.optim.AdamW:
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=device == "cuda")


def loss_of(model: Qwen3ForCausalLM, batch: Batch, device: str) -> torch.Tensor:
    """Mean cross-entropy over the target tokens only; logits exist only where a target follows."""
    targets = batch.labels[:, 1:].ravel()
    where = np.flatnonzero(targets != IGNORED)
    tokens = torch.from_numpy(batch.tokens[:, :-1].copy()).to(device, non_blocking=True)
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        # A mapping of masks tells transformers to build none: rows are causal, and padding comes last.
        hidden = model.model(input_ids=tokens, attention_mask={"full_attention": None}, use_cache=False)
        picked = hidden.last_hidden_state.flatten(0, 1)[torch.from_numpy(where).to(device)]
        logits = model.lm_head(picked)
    return functional.cross_entropy(logits.float(), torch.from_numpy(targets[where]).to(device))


def fit(model: Qwen3ForCausalLM, plan: BatchPlan, args: argparse.Namespace) -> Outcome:
    batches = stream(plan, args.steps, args.workers)
    first = next(batches)  # the workers are forked before CUDA starts
    model.to(args.device).train()
    if args.compile:
        for layer in model.model.layers:
            layer.compile()
    optimizer = optimizer_for(model, args.device)
    losses: list[torch.Tensor] = []
    num_tokens = 0
    begin = time.monotonic()
    for step in range(args.steps):
        batch = first if step == 0 else next(batches)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        loss = loss_of(model, batch, args.device)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        num_tokens += batch.tokens.size
        if step % 100 == 99 or step == args.steps - 1:
            mean = torch.stack(losses[-100:]).mean().item()
            rate = num_tokens / (time.monotonic() - begin)
            print(f"step {step + 1}/{args.steps}  loss {mean:.4f}  {rate / 1e6:.2f} M tokens/s", flush=True)
    seconds = time.monotonic() - begin
    return Outcome(torch.stack(losses[-50:]).mean().item(), num_tokens, seconds)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model's files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--tokens-per-batch", type=int, default=131_072, help="padding included")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=max(1, min(12, (os.cpu_count() or 2) - 2)))
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available())
    parser.add_argument("--prompts", type=int, default=200, help="held-out prompts per skill for the report")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    bpe = tokenizer.train(args.seed)
    tokenizer.save(bpe, args.out, MAX_LENGTH)
    model = model_files.new_model()
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    outcome = fit(model, BatchPlan(bpe.to_str(), args.seed, args.tokens_per_batch), args)
    model_files.save(model, args.out)
    generate = transformers_generate(args.out, args.device)
    scores = [score(generate, skill, args.prompts) for skill in SKILLS]
    for result in scores:
        for asked, expected, got in result.misses[:8]:
            print(f"{result.skill}: …{asked[-90:]!r}\n  expected {expected!r}\n  got      {got!r}")
    print(table(scores))
    options = f"--seed {args.seed} --steps {args.steps} --tokens-per-batch {args.tokens_per_batch} --lr {args.lr:g}"
    device = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    text = card.text(
        command=f"python tools/demo_model/train.py --out rtp_llm/demo {options}",
        num_parameters=sum(p.numel() for p in model.parameters()), seed=args.seed, device=device,
        seconds=outcome.seconds, num_tokens=outcome.num_tokens, final_loss=outcome.final_loss, scores=table(scores),
        num_prompts=args.prompts,
    )  # fmt: skip
    (args.out / "README.md").write_text(text)
    print(f"final loss {outcome.final_loss:.4f}, {outcome.num_tokens / 1e6:.0f} M tokens in {outcome.seconds:.0f} s")


if __name__ == "__main__":
    main()
