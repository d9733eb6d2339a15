"""LoadedWeights: a model's weights on the device, and where they came from. Others of the same shapes can take their place, in
the same memory, while no step runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtp_llm._native import _engine
from rtp_llm.errors import EngineError, InvalidRequestError, ModelLoadError
from rtp_llm.model.config import ModelConfig, read_model_config
from rtp_llm.model.weights import check_weights, fill_weights, untied_from_its_embedding


@dataclass(frozen=True, kw_only=True)
class WeightsSource:
    """Where weights come from. `version`: 0 as the configuration says; else the number of the update that brought them, which
    is part of their digest, so that no KV block of others is ever taken for one of theirs."""

    path: str
    load_format: str = "safetensors"
    seed: int = 0  # of random weights
    version: int = 0


class LoadedWeights:
    """Read and packed when this is made.

    Raises:
        ModelError: the files can't be served.
    """

    def __init__(self, device: Any, config: ModelConfig, dtype: str, source: WeightsSource) -> None:
        self.config = config
        self.source = source
        self._dtype = dtype
        self._next = source
        try:
            self.native = _engine.Weights(device, _engine.ModelConfig(**config.native_fields(dtype)))
        except InvalidRequestError as error:  # no request is there yet: the configuration is wrong
            raise ModelLoadError(f"{Path(source.path) / 'config.json'}: {error.message}") from error
        self._expected = self.native.expected()
        self._fill(source)
        self.native.finish(source.version)

    @property
    def digest(self) -> str:
        return str(self.native.digest)

    def check(self, directory: str) -> None:
        """Whether the weights in `directory` could take the place of these. Reads headers; changes nothing.

        Raises:
            ModelError: they can't; names the file, and what differs.
        """
        other = untied_from_its_embedding(directory, read_model_config(directory), "safetensors")
        here, there = self.config.native_fields(self._dtype), other.native_fields(self._dtype)
        for name, value in here.items():
            if there[name] != value:
                raise ModelLoadError(
                    f"{Path(directory) / 'config.json'}: {name} is {there[name]!r}, of the model that runs {value!r}"
                )
        check_weights(directory, self.config, self._expected)

    def overwrite(self, source: WeightsSource) -> None:
        """Write the weights of `source` over these. Until adopt() no step may run, and the digest is the old one.

        Raises:
            ModelLoadError: a file is not what check() saw. The old weights have been read again and are whole.
            EngineError: that has failed, too. No weights are whole.
        """
        try:
            self.native.reopen()
            self._fill(source)
        except Exception as error:
            self._restore(error)
            raise
        self._next = source

    def adopt(self) -> None:
        """What was written over them counts from now on. REQUIRES: overwrite()."""
        self.native.finish(self._next.version)
        self.source = self._next

    def _restore(self, cause: Exception) -> None:
        before = self.digest
        try:
            self.native.reopen()
            self._fill(self.source)
            self.native.finish(self.source.version)
        except Exception as error:
            raise EngineError(
                f"weights were lost in an update: {cause}; the old ones can't be read again: {error}"
            ) from error
        if self.digest != before:
            raise EngineError(
                f"weights were lost in an update: {cause}; {self.source.path} holds others than those that were loaded from it"
            )

    def _fill(self, source: WeightsSource) -> None:
        fill_weights(source.path, self.config, self.native, load_format=source.load_format, seed=source.seed)
