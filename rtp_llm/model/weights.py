"""Streams a checkpoint into the engine: every header is checked first, then each file is read once, chunk by chunk.

The engine packs what it is given; no tensor is ever held whole. The native `Weights` is a `WeightSink`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from rtp_llm.errors import ModelLoadError
from rtp_llm.model.checkpoint import Checkpoint
from rtp_llm.model.config import ModelConfig
from rtp_llm.model.names import EMBEDDING, HEAD, slot_name
from rtp_llm.model.safetensors_file import StoredTensor

CHUNK_BYTES = 4 << 20
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # safetensors' names → the engine's
_NAMED = 10

_log = logging.getLogger("rtp_llm.model")


class ExpectedTensor(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> Sequence[int]: ...


class WeightSink(Protocol):
    """Where tensors go: rows [first_row, first_row + rows) at a time, `data` in `dtype`; 1-D: rows are elements."""

    def expected(self) -> Sequence[ExpectedTensor]: ...
    def write(self, name: str, first_row: int, rows: int, row_elements: int, dtype: str, data: memoryview) -> None: ...
    def write_random(self, seed: int) -> None: ...
    def finish(self) -> None: ...


Progress = Callable[[int, int], None]  # bytes done, bytes in all


def load_weights(
    directory: str | Path,
    config: ModelConfig,
    sink: WeightSink,
    *,
    load_format: str = "safetensors",
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Fill and finish `sink` from the files in `directory`, or with seeded random values (`load_format="dummy"`).

    Raises:
        ModelLoadError: no files, or one is truncated; a tensor is missing, unknown, mis-shaped or of an unsupported
            type. Names file, tensor, expected and found.
    """
    if load_format == "dummy":
        sink.write_random(seed)
    elif load_format == "safetensors":
        _load_files(Path(directory), config, sink, progress)
    else:
        raise ModelLoadError(f"load_format {load_format!r} is unknown, there are safetensors, dummy")
    sink.finish()


def untied_from_its_embedding(directory: str | Path, config: ModelConfig, load_format: str) -> ModelConfig:
    """`config` as its checkpoint means it: a tied model whose files hold an lm_head with other values than the embedding's
    computes with that lm_head.

    Source: transformers' tie_weights(): "both are present in the checkpoints with different values, so we will NOT tie them".

    Raises:
        ModelLoadError: as load_weights.
    """
    if not config.tie_word_embeddings or load_format != "safetensors":
        return config
    with Checkpoint(Path(directory)) as checkpoint:
        if not _head_differs(checkpoint):
            return config
    _log.warning("%s: lm_head differs from the tied embedding and is used as it is", directory)
    return replace(config, tie_word_embeddings=False)


def _head_differs(checkpoint: Checkpoint) -> bool:
    if checkpoint.empty:
        from rtp_llm.model.torch_files import head_differs

        return head_differs(checkpoint.directory)
    head, embedding = checkpoint.find(HEAD), checkpoint.find(EMBEDDING)
    return head is not None and embedding is not None and not _equal(checkpoint, head, embedding)


def _equal(checkpoint: Checkpoint, one: StoredTensor, other: StoredTensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    buffers = [memoryview(bytearray(CHUNK_BYTES)) for _ in (one, other)]
    pairs = (checkpoint.chunks(each, buffer, CHUNK_BYTES) for each, buffer in zip((one, other), buffers, strict=True))
    return all(left == right for left, right in zip(*pairs, strict=True))


def _load_files(directory: Path, config: ModelConfig, sink: WeightSink, progress: Progress | None) -> None:
    with Checkpoint(directory) as checkpoint:
        if checkpoint.empty:
            from rtp_llm.model.torch_files import load_torch_files

            load_torch_files(directory, config, sink)
            return
        plan = _plan(checkpoint, config, sink)
        total = sum(tensor.num_bytes for tensor in plan.values())
        done = 0
        buffer = memoryview(bytearray(CHUNK_BYTES))
        for slot, tensor in sorted(plan.items(), key=lambda pair: (pair[1].file, pair[1].offset)):
            buffer = _write_tensor(checkpoint, slot, tensor, sink, buffer)
            done += tensor.num_bytes
            if progress is not None:
                progress(done, total)


def _plan(checkpoint: Checkpoint, config: ModelConfig, sink: WeightSink) -> dict[str, StoredTensor]:
    """Which stored tensor fills each slot; complete and well-shaped."""
    shapes = {tensor.name: tuple(tensor.shape) for tensor in sink.expected()}
    names = {tensor.name for tensor in checkpoint.tensors}
    plan: dict[str, StoredTensor] = {}
    for tensor in checkpoint.tensors:
        slot = slot_name(config, tensor.name, names)
        if slot is None:
            continue
        check_tensor(tensor.file, tensor.name, tensor.shape, slot, shapes, config)
        if tensor.dtype not in DTYPES:
            raise ModelLoadError(
                f"{tensor.file}: tensor {tensor.name}: dtype {tensor.dtype} is not supported, "
                f"there are {', '.join(DTYPES)}"
            )
        if slot in plan:
            raise ModelLoadError(f"{tensor.file}: tensor {tensor.name} comes twice, {plan[slot].file} has it too")
        plan[slot] = tensor
    check_complete(checkpoint.directory, shapes, plan)
    return plan


def check_tensor(
    file: Path,
    name: str,
    shape: Sequence[int],
    slot: str,
    expected: dict[str, tuple[int, ...]],
    config: ModelConfig,
) -> None:
    """Raises ModelLoadError for a tensor that the model doesn't have, or has in another shape."""
    if slot not in expected:
        raise ModelLoadError(f"{file}: tensor {name}: a {config.architecture} with this config.json has none")
    if tuple(shape) != expected[slot]:
        raise ModelLoadError(f"{file}: tensor {name}: expected shape {list(expected[slot])}, found {list(shape)}")


def check_complete(directory: Path, expected: dict[str, tuple[int, ...]], found: Collection[str]) -> None:
    """Raises ModelLoadError naming the first missing tensors and their number."""
    missing = [name for name in expected if name not in found]
    if missing:
        more = ", ..." if len(missing) > _NAMED else ""
        raise ModelLoadError(
            f"{directory}: {len(missing)} of {len(expected)} tensors are missing: {', '.join(missing[:_NAMED])}{more}"
        )


def _write_tensor(
    checkpoint: Checkpoint, slot: str, tensor: StoredTensor, sink: WeightSink, buffer: memoryview
) -> memoryview:
    """Whole rows at a time. Returns the buffer, a larger one if a row didn't fit."""
    num_rows, row_elements = (tensor.shape[0], 1) if len(tensor.shape) == 1 else tensor.shape
    row_bytes = tensor.num_bytes // num_rows
    if row_bytes > len(buffer):
        buffer = memoryview(bytearray(row_bytes))
    first_row = 0
    for chunk in checkpoint.chunks(tensor, buffer, len(buffer) // row_bytes * row_bytes):
        rows = len(chunk) // row_bytes
        sink.write(slot, first_row, rows, row_elements, DTYPES[tensor.dtype], chunk)
        first_row += rows
    return buffer
