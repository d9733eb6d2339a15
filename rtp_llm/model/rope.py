"""Rotary position embedding of a config.json, in the layouts of transformers 4 and 5."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtp_llm.errors import ModelLoadError, UnsupportedModelError, shortened

SUPPORTED = ("default", "llama3")


@dataclass(frozen=True, kw_only=True)
class Rope:
    """`scaling` "llama3" stretches long wavelengths by `factor`; "default" ignores all but theta."""

    theta: float = 10000.0
    scaling: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0

    def native_fields(self) -> dict[str, Any]:
        return {
            "rope_theta": self.theta,
            "rope_scaling": self.scaling,
            "rope_factor": self.factor,
            "rope_low_freq_factor": self.low_freq_factor,
            "rope_high_freq_factor": self.high_freq_factor,
            "rope_original_max_position": self.original_max_position_embeddings,
        }


def read_rope(path: Path, tree: Mapping[str, Any], max_position_embeddings: int) -> Rope:
    """From `rope_parameters` (transformers 5: theta inside) or `rope_theta` and `rope_scaling` (4: "type" or "rope_type").

    Raises:
        UnsupportedModelError: another rope type, a partial rotation, parameters by layer type.
        ModelLoadError: a parameter is missing or no positive number; names file, field and value.
    """
    field = "rope_parameters" if tree.get("rope_parameters") else "rope_scaling"
    parameters = tree.get(field) or {}
    if not isinstance(parameters, Mapping):
        raise ModelLoadError(f"{path}: {field} must be an object, found {parameters!r}")
    if any(isinstance(value, Mapping) for value in parameters.values()):
        raise UnsupportedModelError(f"{path}: {field} differs by layer type: {', '.join(parameters)}")
    _refuse_partial_rotation(path, tree, parameters)

    def number(name: str, fallback: Any) -> float:
        where, value = f"{field}.{name}", parameters.get(name)
        if value is None:
            where, value = name if name in tree else where, fallback
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
            raise ModelLoadError(f"{path}: {where} must be a positive number, found {shortened(value)}")
        return float(value)

    top_theta = tree.get("rope_theta")
    theta = number("rope_theta", 10000.0 if top_theta is None else top_theta)
    scaling = parameters.get("rope_type", parameters.get("type", "default"))
    if scaling not in SUPPORTED:
        raise UnsupportedModelError(
            f"{path}: {field}.rope_type {scaling!r} is not supported, there are {', '.join(SUPPORTED)}"
        )
    if scaling == "default":
        return Rope(theta=theta)
    return Rope(
        theta=theta,
        scaling=scaling,
        factor=number("factor", None),
        low_freq_factor=number("low_freq_factor", None),
        high_freq_factor=number("high_freq_factor", None),
        original_max_position_embeddings=int(number("original_max_position_embeddings", max_position_embeddings)),
    )


def _refuse_partial_rotation(path: Path, tree: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    for holder in (tree, parameters):
        value = holder.get("partial_rotary_factor")
        if value is not None and value != 1:
            raise UnsupportedModelError(f"{path}: partial_rotary_factor {value!r} is not supported, only 1 is")
