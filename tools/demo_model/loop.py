"""The training loop that every model here shares: AdamW, warm-up and cosine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

WARMUP_STEPS = 200
WEIGHT_DECAY = 0.1
LOG_EVERY = 250


@dataclass(frozen=True)
class Schedule:
    steps: int
    lr: float  # at the peak
    max_seconds: float = math.inf  # a guard: steps that don't fit are cut off the schedule, so the rate still ends at 0


@dataclass(frozen=True)
class Outcome:
    final_loss: float  # mean over the last 50 steps
    num_steps: int
    num_tokens: int  # padding included
    seconds: float


def learning_rate(step: int, num_steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine to zero."""
    warmup = min(WARMUP_STEPS, num_steps // 10 + 1)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))


def optimizer_for(parameters: list[nn.Parameter], device: str) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=device == "cuda")


def compile_layers(*layers: nn.Module) -> None:
    """Every batch shape gets its own code; the layers of one model share it."""
    torch._dynamo.config.recompile_limit = 64
    for layer in layers:
        layer.compile(dynamic=False)


def fit(
    parameters: list[nn.Parameter],
    batches: Iterator[Any],
    loss_of: Callable[[Any], torch.Tensor],
    schedule: Schedule,
    device: str,
) -> Outcome:
    """Trains `parameters`; a batch has `tokens`, which are counted. Nothing in a step waits for the device."""
    optimizer = optimizer_for(parameters, device)
    losses: list[torch.Tensor] = []
    num_steps, num_tokens, waited, step = schedule.steps, 0, 0.0, 0
    every = min(LOG_EVERY, max(1, schedule.steps // 10))
    begin = settled = time.monotonic()
    while step < num_steps:
        asked = time.monotonic()
        batch = next(batches)
        waited += time.monotonic() - asked
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, num_steps, schedule.lr)
        loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        num_tokens += batch.tokens.numel()
        step += 1
        if step % every == 0 or step == num_steps:
            mean = torch.stack(losses[-every:]).mean().item()
            now = time.monotonic()
            if step == every:  # compilation is over
                settled = now
            elif step < num_steps:
                pace = (now - settled) / max(1, step - every)
                num_steps = _steps_that_fit(step, schedule.max_seconds - (now - begin), pace, schedule.steps)
            rate, idle = num_tokens / (now - begin) / 1e6, waited / (now - begin)
            print(f"step {step}/{num_steps}  loss {mean:.4f}  {rate:.2f} M tokens/s  data {idle:.0%}", flush=True)
    return Outcome(torch.stack(losses[-50:]).mean().item(), step, num_tokens, time.monotonic() - begin)


def _steps_that_fit(step: int, seconds_left: float, seconds_per_step: float, num_steps: int) -> int:
    left = max(0.0, seconds_left) / max(seconds_per_step, 1e-9)
    return num_steps if left >= num_steps - step else step + int(left)
