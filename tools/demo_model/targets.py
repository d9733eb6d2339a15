"""Batches of the language models: which positions have a target, and the logits there."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from batches import IGNORED, Batch, BatchMaker, BatchPlan
from workers import stream

Array = Any  # numpy on the way to the device, torch there


class TargetBatch(NamedTuple):
    tokens: Array  # int64 [rows, length]
    where: Array  # int64 [n]: flat indices into tokens; the token after each is a target
    targets: Array  # int64 [n]


def target_batch(batch: Batch) -> TargetBatch:
    following = np.full_like(batch.labels, IGNORED)
    following[:, :-1] = batch.labels[:, 1:]
    where = np.flatnonzero(following != IGNORED)
    return TargetBatch(batch.tokens, where, following.ravel()[where])


def training_batches(plan: BatchPlan, args: argparse.Namespace) -> Iterator[TargetBatch]:
    """Of the generator's documents, on the device. Call it before CUDA starts."""
    make = BatchMaker(plan)
    return stream(lambda step: target_batch(make(step)), args.steps, args.workers, args.device)


def mixed_precision(device: str) -> torch.autocast:
    """bf16 matrix products on a GPU, fp32 on a CPU."""
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


def hidden_states(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """[rows, length, features] of a Qwen3 or Qwen3-MoE model, as its own forward pass without padding gives them.

    No mask is built (rows are causal, padding comes last) and nothing waits for the device.
    """
    decoder = model.model
    hidden = decoder.embed_tokens(tokens)
    positions = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
    rotary = decoder.rotary_emb(hidden, positions)
    for layer in decoder.layers:
        hidden = layer(hidden, attention_mask=None, position_embeddings=rotary, use_cache=False)
    return decoder.norm(hidden)


def target_logits(model: Any, batch: TargetBatch) -> torch.Tensor:
    """[n, vocab]; elsewhere no logits are computed."""
    return model.lm_head(hidden_states(model, batch.tokens).flatten(0, 1).index_select(0, batch.where))


def cross_entropy(logits: torch.Tensor, batch: TargetBatch) -> torch.Tensor:
    return functional.cross_entropy(logits.float(), batch.targets)
