"""Turns the generator's documents into padded arrays; a step's batch depends on seed and step alone."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from data import Segment, training_document
from encoder import Encoder

IGNORED = -100
CHARS_PER_TOKEN = 4.8  # of stories; dialogues have 4.0
# (tokens a row, share of the batches): every position up to the last is trained.
BUCKETS = ((128, 0.35), (256, 0.2), (512, 0.15), (1024, 0.12), (2048, 0.18))
MAX_LENGTH = BUCKETS[-1][0]


class Batch(NamedTuple):
    tokens: NDArray[np.int64]  # [rows, length], padded with <|endoftext|>
    labels: NDArray[np.int64]  # [rows, length]: the token itself where it is a target, else IGNORED


@dataclass(frozen=True)
class BatchPlan:
    tokenizer_json: str
    seed: int
    tokens_per_batch: int


def encode(encoder: Encoder, documents: list[list[Segment]], length: int) -> Batch:
    """Documents longer than `length` tokens lose their end."""
    tokens = np.full((len(documents), length), encoder.padding, np.int64)
    labels = np.full((len(documents), length), IGNORED, np.int64)
    for row, document in enumerate(documents):
        ids: list[int] = []
        targets: list[tuple[int, int]] = []
        for text, is_target in document:
            begin = len(ids)
            ids += encoder.encode(text)
            if is_target:
                targets.append((begin, len(ids)))
            if len(ids) >= length:
                break
        tokens[row, : len(ids)] = ids[:length]
        for begin, end in targets:
            labels[row, begin:end] = tokens[row, begin:end]
    return Batch(tokens, labels)


def make_batch(encoder: Encoder, plan: BatchPlan, step: int) -> Batch:
    rng = Random(f"batch {plan.seed} {step}")
    length = rng.choices([n for n, _ in BUCKETS], [share for _, share in BUCKETS])[0]
    max_chars = int(length * CHARS_PER_TOKEN)
    documents = [
        training_document(rng, rng.randint(max_chars * 3 // 4, max_chars))
        for _ in range(max(1, plan.tokens_per_batch // length))
    ]
    return encode(encoder, documents, length)


class BatchMaker:
    """The batch of any step. The words it has encoded are remembered, so a process keeps one."""

    def __init__(self, plan: BatchPlan) -> None:
        self._plan = plan
        self._encoder = Encoder(Tokenizer.from_str(plan.tokenizer_json))

    def __call__(self, step: int) -> Batch:
        return make_batch(self._encoder, self._plan, step)
