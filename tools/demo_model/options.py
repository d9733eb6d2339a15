"""The command line that every training here shares."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

import torch

from loop import Schedule


def parser(description: str | None, *, steps: int, tokens_per_batch: int, lr: float) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=description)
    add = result.add_argument
    add("--out", type=Path, required=True, help="folder for the model's files")
    add("--seed", type=int, default=0)
    add("--steps", type=int, default=steps)
    add("--tokens-per-batch", type=int, default=tokens_per_batch, help="padding included")
    add("--lr", type=float, default=lr, help="at the peak of the schedule")
    add("--max-seconds", type=float, default=math.inf, help="cut steps that don't fit; a cut run isn't reproducible")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--workers", type=int, default=max(1, min(13, (os.cpu_count() or 2) - 2)), help="processes that make batches")
    add("--compile", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available())
    add("--prompts", type=int, default=200, help="held-out prompts per skill for the report; 0: no report")
    return result


def begin(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments of a training that starts now: its folder is there, torch is seeded."""
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    return args


def schedule(args: argparse.Namespace) -> Schedule:
    return Schedule(args.steps, args.lr, args.max_seconds)


def command(script: str, out: str, args: argparse.Namespace, num_steps: int, **more: object) -> str:
    """What repeats this training: `num_steps` are those that ran."""
    options = {
        "out": out, **more, "seed": args.seed, "steps": num_steps, "tokens-per-batch": args.tokens_per_batch,
        "lr": f"{args.lr:g}",
    }  # fmt: skip
    return f"python tools/demo_model/{script} " + " ".join(f"--{name} {value}" for name, value in options.items())


def device_name(args: argparse.Namespace) -> str:
    return torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
