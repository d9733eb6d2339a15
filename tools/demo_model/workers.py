"""Calls a function for steps 0, 1, 2, … in worker processes; the results come in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from typing import Any

_make: Callable[[int], Any]


def _start(make: Callable[[int], Any]) -> None:
    global _make
    _make = make


def _work(step: int) -> Any:
    return _make(step)


def stream(make: Callable[[int], Any], num_steps: int, num_workers: int) -> Iterator[Any]:
    """`make` may be a closure. Start it before CUDA is initialised: workers are forked."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with get_context("fork").Pool(num_workers, _start, (make,)) as pool:
        yield from pool.imap(_work, range(num_steps), chunksize=2)
