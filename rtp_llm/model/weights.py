"""Streams a checkpoint into the engine: every header is checked first, then each file is read once, chunk by chunk.

The engine packs what it is given; no tensor is ever held whole. The native `Weights` is a `WeightSink`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from rtp_llm.errors import ModelLoadError
from rtp_llm.model.config import ModelConfig
from rtp_llm.model.files import read_json
from rtp_llm.model.names import slot_name
from rtp_llm.model.safetensors_file import SafetensorsFile, StoredTensor

CHUNK_BYTES = 4 << 20
INDEX = "model.safetensors.index.json"
_BIN_FILES = ("pytorch_model.bin.index.json", "pytorch_model.bin")
_NAMED = 10


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


def _load_files(directory: Path, config: ModelConfig, sink: WeightSink, progress: Progress | None) -> None:
    paths = _safetensors_paths(directory)
    if not paths:
        from rtp_llm.model.torch_files import load_torch_files

        load_torch_files(directory, [directory / name for name in _BIN_FILES], config, sink)
        return
    with ExitStack() as stack:
        files = [stack.enter_context(SafetensorsFile(path)) for path in paths]
        plan = _plan(files, config, sink)
        total = sum(tensor.num_bytes for tensor in plan.values())
        done = 0
        buffer = memoryview(bytearray(CHUNK_BYTES))
        for file in files:
            own = [(slot, tensor) for slot, tensor in plan.items() if tensor.file == file.path]
            for slot, tensor in sorted(own, key=lambda pair: pair[1].offset):
                buffer = _write_tensor(file, slot, tensor, sink, buffer)
                done += tensor.num_bytes
                if progress is not None:
                    progress(done, total)


def _safetensors_paths(directory: Path) -> list[Path]:
    """The files that the index names, or else every safetensors file there is."""
    index = directory / INDEX
    if not index.exists():
        return sorted(directory.glob("*.safetensors"))
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ModelLoadError(f"{index}: weight_map must map tensors to files, found {weight_map!r}")
    return [directory / name for name in sorted(set(weight_map.values()))]


def _plan(files: Sequence[SafetensorsFile], config: ModelConfig, sink: WeightSink) -> dict[str, StoredTensor]:
    """Which stored tensor fills each slot; complete and well-shaped."""
    shapes = {tensor.name: tuple(tensor.shape) for tensor in sink.expected()}
    plan: dict[str, StoredTensor] = {}
    for tensor in (tensor for file in files for tensor in file.tensors.values()):
        slot = slot_name(config, tensor.name)
        if slot is None:
            continue
        check_tensor(tensor.file, tensor.name, tensor.shape, slot, shapes, config)
        if slot in plan:
            raise ModelLoadError(f"{tensor.file}: tensor {tensor.name} comes twice, {plan[slot].file} has it too")
        plan[slot] = tensor
    check_complete(files[0].path.parent, shapes, plan)
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
    file: SafetensorsFile, slot: str, tensor: StoredTensor, sink: WeightSink, buffer: memoryview
) -> memoryview:
    """Whole rows at a time. Returns the buffer, a larger one if a row didn't fit."""
    num_rows, row_elements = (tensor.shape[0], 1) if len(tensor.shape) == 1 else tensor.shape
    row_bytes = tensor.num_bytes // num_rows
    if row_bytes > len(buffer):
        buffer = memoryview(bytearray(row_bytes))
    first_row = 0
    for chunk in file.chunks(tensor, buffer, len(buffer) // row_bytes * row_bytes):
        rows = len(chunk) // row_bytes
        sink.write(slot, first_row, rows, row_elements, tensor.dtype, chunk)
        first_row += rows
    return buffer
