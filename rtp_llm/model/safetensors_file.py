"""One safetensors file: its header, checked against its size, and its bytes in chunks.

Format: u64 little-endian length of the header, the header (JSON: name → dtype, shape, data_offsets), the data.
Source: https://github.com/huggingface/safetensors#format

The library judges the header last (0.1 ms a file): it knows what no loader may take, tensors that overlap or leave holes. The
bytes are read here, since its readers can't stream: `safe_open` gives whole tensors of types that NumPy has, which bfloat16 is
not; `deserialize` wants the whole file in memory and copies it (960 MiB for one of 480; the chunks here: 4).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError, safe_open

from rtp_llm.errors import ModelLoadError

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8, "C64": 8,
}  # fmt: skip
MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in its file."""

    file: Path
    name: str
    dtype: str  # the format's name: "F32", "BF16", …; whoever reads the tensor says which it can take
    shape: tuple[int, ...]
    offset: int  # bytes from the file's start
    num_bytes: int


class SafetensorsFile:
    """An open file. Use as a context manager.

    Raises:
        ModelLoadError: the file is missing, truncated or not safetensors; names the file, what was expected and found.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:  # a name that no file can have
            raise ModelLoadError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
        try:
            self._size = os.fstat(self._fd).st_size
            self.tensors: dict[str, StoredTensor] = self._read_header()
            self._check_header()
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def fileno(self) -> int:
        return self._fd

    def chunks(
        self, tensor: StoredTensor, buffer: memoryview, chunk_bytes: int, begin: int = 0, end: int | None = None
    ) -> Iterator[memoryview]:
        """The tensor's bytes [begin, end) in order, each chunk in the same `buffer`. REQUIRES: chunk_bytes <= len(buffer)."""
        end = tensor.num_bytes if end is None else end
        for start in range(begin, end, chunk_bytes):
            chunk = buffer[: min(chunk_bytes, end - start)]
            self._read(chunk, tensor.offset + start)
            yield chunk

    def _read_header(self) -> dict[str, StoredTensor]:
        length_bytes = bytearray(8)
        self._read(memoryview(length_bytes), 0)
        length = int.from_bytes(length_bytes, "little")
        if length > min(MAX_HEADER_BYTES, self._size - 8):
            limit = (
                f"{self._size - 8} are in the file" if length <= MAX_HEADER_BYTES else f"{MAX_HEADER_BYTES} are allowed"
            )
            raise ModelLoadError(f"{self.path}: truncated or no safetensors: a header of {length} bytes, {limit}")
        text = bytearray(length)
        self._read(memoryview(text), 8)
        try:
            header = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelLoadError(f"{self.path}: no safetensors: the header is not JSON: {error}") from error
        if not isinstance(header, dict):
            raise ModelLoadError(f"{self.path}: no safetensors: the header is not an object")
        tensors = {
            name: self._entry(name, entry, 8 + length) for name, entry in header.items() if name != "__metadata__"
        }
        expected = max((tensor.offset + tensor.num_bytes for tensor in tensors.values()), default=8 + length)
        if self._size != expected:
            kind = "truncated" if self._size < expected else "no safetensors"
            raise ModelLoadError(f"{self.path}: {kind}: expected {expected} bytes, found {self._size}")
        return tensors

    def _check_header(self) -> None:
        try:
            with safe_open(self.path, "np"):
                pass
        except SafetensorError as error:
            raise ModelLoadError(f"{self.path}: no safetensors: {error}") from error

    def _entry(self, name: str, entry: Any, data_start: int) -> StoredTensor:
        try:
            dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
        except (TypeError, KeyError, ValueError) as error:
            raise ModelLoadError(f"{self.path}: tensor {name}: bad header entry {entry!r}") from error
        if not whole or not isinstance(dtype, str):
            raise ModelLoadError(f"{self.path}: tensor {name}: bad header entry {entry!r}")
        expected = math.prod(shape) * ITEM_BYTES.get(dtype, 0)
        if end - begin != expected and (end < begin or dtype in ITEM_BYTES):
            raise ModelLoadError(
                f"{self.path}: tensor {name}: {list(shape)} {dtype} are {expected} bytes, the header says {end - begin}"
            )
        return StoredTensor(self.path, name, dtype, shape, data_start + begin, end - begin)

    def _read(self, into: memoryview, offset: int) -> None:
        done = 0
        while done < len(into):
            try:
                count = os.preadv(self._fd, [into[done:]], offset + done)
            except OSError as error:
                raise ModelLoadError(f"{self.path}: {error.strerror or error}") from error
            if count == 0:
                raise ModelLoadError(
                    f"{self.path}: truncated: expected {offset + len(into)} bytes, found {offset + done}"
                )
            done += count
