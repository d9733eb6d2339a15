"""Checkpoints in torch's own format (pytorch_model.bin), read through the extra `hf`."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rtp_llm.errors import ModelLoadError
from rtp_llm.model.checkpoint import weight_map
from rtp_llm.model.config import ModelConfig
from rtp_llm.model.names import EMBEDDING, HEAD, slot_name
from rtp_llm.model.weights import WeightSink, check_complete, check_tensor

FILES = ("pytorch_model.bin.index.json", "pytorch_model.bin")


def load_torch_files(directory: Path, config: ModelConfig, sink: WeightSink) -> None:
    """Fill `sink` from the first of FILES that exists.

    Raises:
        ModelLoadError: there is none, torch is not installed, or what it reads doesn't fit the model.
    """
    shapes = {tensor.name: tuple(tensor.shape) for tensor in sink.expected()}
    states = list(_states(directory))
    names = {name for _, state in states for name in state}
    found = set()
    for path, state in states:
        for name, tensor in state.items():
            slot = slot_name(config, name, names)
            if slot is None:
                continue
            check_tensor(path, name, tensor.shape, slot, shapes, config)
            _write(path, name, slot, tensor, sink)
            found.add(slot)
    check_complete(directory, shapes, found)


def head_differs(directory: Path) -> bool:
    """Whether there are both an lm_head and an embedding, with other values.

    Raises:
        ModelLoadError: as load_torch_files.
    """
    tensors = {name: tensor for _, state in _states(directory) for name, tensor in state.items()}
    import torch

    head, embedding = tensors.get(HEAD), tensors.get(EMBEDDING)
    return head is not None and embedding is not None and not torch.equal(head, embedding)


def _states(directory: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Each file with what it holds, mapped into memory."""
    first = next((directory / name for name in FILES if (directory / name).exists()), None)
    if first is None:
        raise ModelLoadError(f"{directory}: no weights: neither *.safetensors nor {FILES[-1]}")
    try:
        import torch
    except ImportError as error:
        raise ModelLoadError(f"{first}: .bin files need torch: pip install 'rtp-llm[hf]'") from error
    paths = [first]
    if first.suffix == ".json":
        paths = sorted({directory / name for name in weight_map(first).values()})
    for path in paths:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise ModelLoadError(f"{path}: {error}") from error
        if not isinstance(state, dict):
            raise ModelLoadError(f"{path}: expected tensors by name, found a {type(state).__name__}")
        for name, tensor in state.items():
            if not isinstance(tensor, torch.Tensor):
                raise ModelLoadError(f"{path}: expected tensors by name, found {name}: {type(tensor).__name__}")
        yield path, state


def _write(path: Path, name: str, slot: str, tensor: Any, sink: WeightSink) -> None:
    import torch

    dtypes = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
    if tensor.dtype not in dtypes:
        raise ModelLoadError(
            f"{path}: tensor {name}: dtype {tensor.dtype} is not supported, there are {', '.join(dtypes.values())}"
        )
    data = tensor.contiguous().flatten().view(torch.uint8).numpy().data
    row_elements = 1 if tensor.ndim == 1 else tensor.shape[1]
    sink.write(slot, 0, tensor.shape[0], row_elements, dtypes[tensor.dtype], data)
