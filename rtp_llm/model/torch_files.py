"""Checkpoints in torch's own format (pytorch_model.bin), read through the extra `hf`."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from rtp_llm.errors import ModelLoadError
from rtp_llm.model.config import ModelConfig
from rtp_llm.model.files import read_json
from rtp_llm.model.names import slot_name
from rtp_llm.model.weights import WeightSink, check_complete, check_tensor


def load_torch_files(directory: Path, candidates: list[Path], config: ModelConfig, sink: WeightSink) -> None:
    """Fill `sink` from the first of `candidates` (an index of shards, or a file) that exists.

    Raises:
        ModelLoadError: there is none, torch is not installed, or what it reads doesn't fit the model.
    """
    first = next((path for path in candidates if path.exists()), None)
    if first is None:
        raise ModelLoadError(f"{directory}: no weights: neither *.safetensors nor {candidates[-1].name}")
    try:
        import torch
    except ImportError as error:
        raise ModelLoadError(f"{first}: .bin files need torch: pip install 'rtp-llm[hf]'") from error

    paths = [first]
    if first.suffix == ".json":
        paths = [directory / name for name in sorted(set(read_json(first).get("weight_map", {}).values()))]
    shapes = {tensor.name: tuple(tensor.shape) for tensor in sink.expected()}
    found = set()
    for path in paths:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise ModelLoadError(f"{path}: {error}") from error
        for name, tensor in state.items():
            slot = slot_name(config, name)
            if slot is None:
                continue
            check_tensor(path, name, tensor.shape, slot, shapes, config)
            _write(path, name, slot, tensor, sink)
            found.add(slot)
    check_complete(directory, shapes, found)


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
