"""Streams a checkpoint into the engine: every header is checked first, then each file is read once, chunk by chunk, by
several threads.

The engine packs what it is given; no tensor is ever held whole. The native `Weights` is a `WeightSink`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from rtp_llm.errors import ModelLoadError
from rtp_llm.model.checkpoint import Checkpoint
from rtp_llm.model.config import ModelConfig
from rtp_llm.model.names import EMBEDDING, HEAD, slot_name
from rtp_llm.model.safetensors_file import SafetensorsFile, StoredTensor

CHUNK_BYTES = 4 << 20
PIECE_BYTES = 32 << 20  # what a thread reads before it takes the next piece
MAX_READERS = 16
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # safetensors' names → the engine's
_NAMED = 10

_log = logging.getLogger("rtp_llm.model")


class ExpectedTensor(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> Sequence[int]: ...


class WeightSink(Protocol):
    """Where tensors go: rows [first_row, first_row + rows) at a time, `data` in `dtype`; 1-D: rows are elements. Several
    threads write at the same time."""

    def expected(self) -> Sequence[ExpectedTensor]: ...
    def write(self, name: str, first_row: int, rows: int, row_elements: int, dtype: str, data: memoryview) -> None: ...
    def read(
        self, name: str, first_row: int, rows: int, row_elements: int, dtype: str, file: int, offset: int
    ) -> int: ...  # the same from an open file: their bytes, or how many there were
    def write_random(self, seed: int) -> None: ...
    def finish(self) -> None: ...


Progress = Callable[[int, int], None]  # bytes done, bytes in all


def fill_weights(
    directory: str | Path,
    config: ModelConfig,
    sink: WeightSink,
    *,
    load_format: str = "safetensors",
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Fill `sink` from the files in `directory`, or with seeded random values (`load_format="dummy"`). The caller finishes it.

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


def check_weights(directory: str | Path, config: ModelConfig, expected: Sequence[ExpectedTensor]) -> None:
    """Whether fill_weights would find all of `expected`, and each file as long as its header says: headers are read, tensors
    are not.

    Raises:
        ModelLoadError: as fill_weights; or there are no safetensors files.
    """
    with Checkpoint(Path(directory)) as checkpoint:
        if checkpoint.empty:
            raise ModelLoadError(f"{directory}: no weights: no *.safetensors")
        _plan(checkpoint, config, expected)


def num_readers() -> int:
    """Threads that read and pack a checkpoint."""
    return min(MAX_READERS, len(os.sched_getaffinity(0)))


def untied_from_its_embedding(directory: str | Path, config: ModelConfig, load_format: str) -> ModelConfig:
    """`config` as its checkpoint means it: a tied model whose files hold an lm_head with other values than the embedding's
    computes with that lm_head.

    Source: transformers' tie_weights(): "both are present in the checkpoints with different values, so we will NOT tie them".

    Raises:
        ModelLoadError: as fill_weights.
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
    pairs = (
        checkpoint.file_of(each).chunks(each, buffer, CHUNK_BYTES)
        for each, buffer in zip((one, other), buffers, strict=True)
    )
    return all(left == right for left, right in zip(*pairs, strict=True))


def _load_files(directory: Path, config: ModelConfig, sink: WeightSink, progress: Progress | None) -> None:
    with Checkpoint(directory) as checkpoint:
        if checkpoint.empty:
            from rtp_llm.model.torch_files import load_torch_files

            load_torch_files(directory, config, sink)
            return
        plan = _plan(checkpoint, config, sink.expected())
        in_file_order = sorted(plan.items(), key=lambda pair: (pair[1].file, pair[1].offset))
        pieces = [piece for slot, tensor in in_file_order for piece in _pieces(slot, tensor)]
        done, total = 0, sum(tensor.num_bytes for tensor in plan.values())
        with ThreadPoolExecutor(num_readers(), "weights") as readers:
            for piece, _ in zip(pieces, readers.map(lambda piece: _read(checkpoint, piece, sink), pieces), strict=True):
                done += piece.num_bytes
                if progress is not None:
                    progress(done, total)


def _plan(checkpoint: Checkpoint, config: ModelConfig, expected: Sequence[ExpectedTensor]) -> dict[str, StoredTensor]:
    """Which stored tensor fills each slot; complete and well-shaped."""
    shapes = {tensor.name: tuple(tensor.shape) for tensor in expected}
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


@dataclass(frozen=True)
class _Piece:
    """Rows [first_row, first_row + rows) of a stored tensor."""

    slot: str
    tensor: StoredTensor
    first_row: int
    rows: int
    row_elements: int
    row_bytes: int

    @property
    def num_bytes(self) -> int:
        return self.rows * self.row_bytes


def _pieces(slot: str, tensor: StoredTensor) -> Iterator[_Piece]:
    num_rows, row_elements = (tensor.shape[0], 1) if len(tensor.shape) == 1 else tensor.shape
    row_bytes = tensor.num_bytes // num_rows
    most = max(1, PIECE_BYTES // row_bytes)
    for first_row in range(0, num_rows, most):
        yield _Piece(slot, tensor, first_row, min(most, num_rows - first_row), row_elements, row_bytes)


def _read(checkpoint: Checkpoint, piece: _Piece, sink: WeightSink) -> None:
    tensor, file = piece.tensor, checkpoint.file_of(piece.tensor)
    if tensor.dtype == "F16":
        return _read_halves(file, piece, sink)
    begin = tensor.offset + piece.first_row * piece.row_bytes
    found = sink.read(
        piece.slot, piece.first_row, piece.rows, piece.row_elements, DTYPES[tensor.dtype], file.fileno(), begin
    )
    if found < piece.num_bytes:
        raise ModelLoadError(f"{file.path}: truncated: expected {begin + piece.num_bytes} bytes, found {begin + found}")
    return None


def _read_halves(file: SafetensorsFile, piece: _Piece, sink: WeightSink) -> None:
    """In chunks of whole rows, which the sink widens."""
    chunk_bytes = max(1, CHUNK_BYTES // piece.row_bytes) * piece.row_bytes
    buffer = memoryview(bytearray(min(chunk_bytes, piece.num_bytes)))
    begin, row = piece.first_row * piece.row_bytes, piece.first_row
    for chunk in file.chunks(piece.tensor, buffer, chunk_bytes, begin, begin + piece.num_bytes):
        rows = len(chunk) // piece.row_bytes
        sink.write(piece.slot, row, rows, piece.row_elements, DTYPES["F16"], chunk)
        row += rows
