"""Batches made in worker processes: in order, a few ahead of their use, copied to the device while it computes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from torch.utils.data import DataLoader, Dataset

AHEAD = 4  # batches a worker prepares


class _Steps(Dataset[Any]):
    def __init__(self, make: Callable[[int], Any], num_steps: int) -> None:
        self._make, self._num_steps = make, num_steps

    def __len__(self) -> int:
        return self._num_steps

    def __getitem__(self, step: int) -> Any:
        return self._make(step)


def stream(make: Callable[[int], Any], num_steps: int, num_workers: int, device: str) -> Iterator[Any]:
    """make(0) … make(num_steps - 1), named tuples of arrays, as tensors on `device`. `make` may be a closure.

    Draws the first batch before it returns. Call it before CUDA starts: workers are forked.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    loader = DataLoader(
        _Steps(make, num_steps), batch_size=None, num_workers=num_workers, prefetch_factor=AHEAD,
        multiprocessing_context="fork", pin_memory=device == "cuda",
    )  # fmt: skip
    batches = iter(loader)
    return _on_device(chain([next(batches)], batches), device)


def _on_device(batches: Iterator[Any], device: str) -> Iterator[Any]:
    for batch in batches:
        yield type(batch)(*(tensor.to(device, non_blocking=True) for tensor in batch))
