"""Step costs out of what `rtp-llm bench engine --json` has measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rtp_llm.errors import ConfigError
from rtp_llm.router.placement.step_cost import LinearFit, StepCost, pairs

FREE = 1e6  # a weight's trust: held to nothing, but where the rows don't tell two of them apart


def step_cost_of(file: Path) -> StepCost:
    """
    Raises:
        ConfigError: the file can't be read, or has no row of decode or none of prefill; names it.
    """
    decode = LinearFit((1.0, 32.0, 32768.0), (FREE,) * 3, (0.0,) * 3)
    prefill = LinearFit((512.0, 131072.0), (FREE,) * 2, (0.0,) * 2)
    seen = set()
    try:
        for row in _rows(file):
            if "decode" in row:
                decode.observe((1.0, row["decode"], row["decode"] * row["context"]), row["step_ms"] / 1000)
                seen.add("decode")
            elif "prefill" in row:
                prefill.observe((row["prefill"], pairs(row["prefill"])), row["median_ms"] / 1000)
                seen.add("prefill")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"measured steps {file}: {error!r}") from error
    for kind in ("decode", "prefill"):
        if kind not in seen:
            raise ConfigError(
                f"measured steps {file}: no row has {kind!r}; rtp-llm bench engine --json writes such a file"
            )
    (base_s, sequence_s, context_s), (row_s, pair_s) = decode.weights, prefill.weights
    return StepCost(base_s=base_s, sequence_s=sequence_s, context_s=context_s, row_s=row_s, pair_s=pair_s)


def _rows(file: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
    return [row for row in rows if isinstance(row, dict)]
