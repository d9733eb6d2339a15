"""Checkpoint: the safetensors files of a model directory as one set of tensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from rtp_llm.errors import ModelLoadError, shortened
from rtp_llm.model.files import is_there, read_json
from rtp_llm.model.safetensors_file import SafetensorsFile, StoredTensor

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
# Mistral's own format, LoRA adapters, what a trainer keeps: they lie beside models and are no part of one.
_NO_PART = re.compile(r"\..*|(consolidated|adapter|optimizer|training|random_states|scheduler)\b.*|adapter_.*")
_NUMBERED = re.compile(r"[^.].*-\d{5}-of-\d{5}")  # as whatever saves a model in parts names them


class Checkpoint:
    """Its files, open. Use as a context manager.

    Raises:
        ModelLoadError: a file is missing, truncated or not safetensors, or the index is malformed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        places = _index(directory)
        with ExitStack() as stack:
            self._files = [stack.enter_context(SafetensorsFile(path)) for path in _paths(directory, places)]
            self._open = stack.pop_all()
        held = {file.path: file.tensors.keys() for file in self._files}
        paths = {tensor: directory / name for tensor, name in places.items()}
        self.tensors = [
            tensor
            for file in self._files
            for tensor in file.tensors.values()
            if _is_place(file.path, tensor.name, paths, held)
        ]

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    @property
    def empty(self) -> bool:
        """Whether the directory has no safetensors files."""
        return not self._files

    def find(self, name: str) -> StoredTensor | None:
        return next((tensor for tensor in self.tensors if tensor.name == name), None)

    def file_of(self, tensor: StoredTensor) -> SafetensorsFile:
        return next(file for file in self._files if file.path == tensor.file)


def _index(directory: Path) -> dict[str, str]:
    """Tensor → the file that holds it; empty without an index."""
    path = directory / INDEX
    if not is_there(path):
        return {}
    places = weight_map(path)
    # What saved the model anew as one file may have left the index of its former parts.
    if (directory / WHOLE).exists() and not any((directory / name).exists() for name in places.values()):
        return {}
    return places


def weight_map(index: Path) -> dict[str, str]:
    """Tensor → file, of an index.

    Raises:
        ModelLoadError: it is unreadable or malformed.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ModelLoadError(f"{index}: weight_map must map tensors to files, found {shortened(places)}")
    return places


def _paths(directory: Path, places: dict[str, str]) -> list[Path]:
    """The index decides; without one the whole model's file does, or else there are only parts: numbered ones, or whatever
    there is."""
    if places:
        return sorted({directory / name for name in places.values()})
    if (directory / WHOLE).exists():
        return [directory / WHOLE]
    paths = [path for path in sorted(directory.glob("*.safetensors")) if not _NO_PART.fullmatch(path.stem)]
    return [path for path in paths if _NUMBERED.fullmatch(path.stem)] or paths


def _is_place(file: Path, tensor: str, places: Mapping[str, Path], held: Mapping[Path, Collection[str]]) -> bool:
    """Whether `tensor` is read from `file`. The index chooses among several files that hold it."""
    place = places.get(tensor, file)
    return place == file or tensor not in held.get(place, ())
