"""Writes tiny model files: what the tests of rtp_llm/model read."""

import json
import os
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rtp_llm.model.config import ModelConfig
from rtp_llm.model.weights import fill_weights

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "dtype": "float32",
}

ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "BF16": 2, "F16": 2, "I8": 1, "BOOL": 1}


def write_config(directory: Path, changes: Mapping[str, Any] | None = None, **fields: Any) -> Path:
    """config.json: CONFIG with `fields`; a field of None is left out. `changes` for names that Python can't spell."""
    merged = {**CONFIG, **fields, **(changes or {})}
    tree = {name: value for name, value in merged.items() if value is not None}
    (directory / "config.json").write_text(json.dumps(tree))
    return directory


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, Sequence[int], bytes]]) -> None:
    """`tensors`: name → (dtype, shape, data)."""
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def load_weights(directory: str | Path, config: ModelConfig, sink: Any, **options: Any) -> None:
    """Fill and finish `sink`."""
    fill_weights(directory, config, sink, **options)
    sink.finish()


def with_layers_exchanged(model: Path, to: Path, one: int = 0, other: int = 1) -> Path:
    """A copy of `model` in which two layers have each other's weights: another model of the same shapes."""
    shutil.copytree(
        model, to, ignore=lambda directory, names: [name for name in names if (Path(directory) / name).is_dir()]
    )
    content = (model / "model.safetensors").read_bytes()
    length = struct.unpack_from("<Q", content)[0]
    names = {f"model.layers.{one}.": f"model.layers.{other}.", f"model.layers.{other}.": f"model.layers.{one}."}
    header = {}
    for name, entry in json.loads(content[8 : 8 + length]).items():
        prefix = next((prefix for prefix in names if name.startswith(prefix)), "")
        header[names.get(prefix, "") + name[len(prefix) :]] = entry
    text = json.dumps(header).encode()
    (to / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    return to


def pattern(name: str, shape: Sequence[int], dtype: str = "F32") -> bytes:
    """Bytes that tell tensors, rows and places apart."""
    count = ITEM_BYTES[dtype]
    for extent in shape:
        count *= extent
    seed = sum(name.encode())
    return bytes((seed + 7 * i) % 61 for i in range(count))


class Recorder:
    """A WeightSink that keeps what it is given."""

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.data: dict[str, bytearray] = {}
        self.dtypes: dict[str, str] = {}
        self.chunks: list[tuple[str, int, int]] = []
        self.seed: int | None = None
        self.finished = False

    def expected(self) -> list[Any]:
        return [_Expected(name, shape) for name, shape in self.shapes.items()]

    def write(self, name: str, first_row: int, rows: int, row_elements: int, dtype: str, data: memoryview) -> None:
        assert len(data) % rows == 0
        row_bytes = len(data) // rows
        assert row_elements == (self.shapes[name][1] if len(self.shapes[name]) == 2 else 1)
        held = self.data.setdefault(name, bytearray(self.shapes[name][0] * row_bytes))
        held[first_row * row_bytes : (first_row + rows) * row_bytes] = data
        self.dtypes[name] = dtype
        self.chunks.append((name, first_row, rows))

    def read(self, name: str, first_row: int, rows: int, row_elements: int, dtype: str, file: int, offset: int) -> int:
        num_bytes = rows * row_elements * {"float32": 4, "bfloat16": 2}[dtype]
        data = os.pread(file, num_bytes, offset)
        if len(data) == num_bytes:
            self.write(name, first_row, rows, row_elements, dtype, memoryview(data))
        return len(data)

    def write_random(self, seed: int) -> None:
        self.seed = seed

    def finish(self) -> None:
        self.finished = True


class _Expected:
    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name = name
        self.shape = shape
