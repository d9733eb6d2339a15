"""StepCost: what an engine's steps take, fitted to what its steps took.

A step reads the weights once for all its rows, so a few prefill rows beside decodes cost nothing until they take longer than
that reading does:

    seconds = max(base, row * prefill_rows + pair * attention_pairs)
              + sequence * decode_rows + context * context_tokens

`base` alone without prefill rows. `context_tokens` is the sum over the decode rows, `attention_pairs` the (row, earlier token)
pairs of the prefill rows.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

FORGETTING = 0.5 ** (1 / 200)  # 200: the half-life of a sample, in samples
REFIT_PARTS = 8  # weights are solved for anew when samples have come that are so small a part of all,
MAX_UNSOLVED = 8  # at the latest after so many: solving costs several times what a sample does
TYPICAL_S = 0.005  # of a step
HIDDEN = 1.2  # times the reading of the weights: steps that take less show no prefill cost


@dataclass(frozen=True, slots=True)
class Step:
    """What one step computed."""

    decode_rows: int = 0
    context_tokens: int = 0
    prefill_rows: int = 0
    attention_pairs: int = 0

    @classmethod
    def of_prompt(cls, rows: int, first: int = 0) -> Step:
        """Rows [first, first + rows) of one prompt."""
        return cls(prefill_rows=rows, attention_pairs=pairs(rows, first))


def pairs(rows: int, first: int = 0) -> int:
    """Of rows [first, first + rows) of a prompt with themselves and all before."""
    return rows * first + rows * (rows + 1) // 2


class LinearFit:
    """y = w · x by least squares of the relative error, each sample counting half as much after 200 further ones; held to what
    it began with as far as samples don't say otherwise. No weight is below zero."""

    def __init__(self, scales: Sequence[float], trust: Sequence[float], weights: Sequence[float]) -> None:
        """`scales`: typical size of each x. `trust`: how easily each weight leaves what it began with (`weights`), where the
        first y is TYPICAL_S, and as easily where a machine is slower or faster; the first samples, which don't tell them
        apart, move the trusted one."""
        self._scales = list(scales)
        self._held = [1 / each for each in trust]
        self._begin = [weight * scale for weight, scale in zip(weights, scales, strict=True)]
        self._xx = [[0.0] * len(scales) for _ in scales]
        self._xy = [0.0] * len(scales)
        self._weights = list(weights)
        self._num_samples = self._num_unsolved = 0

    def observe(self, x: Sequence[float], y: float) -> None:
        """REQUIRES: y > 0."""
        if self._num_samples == 0:
            self._held = [each * (TYPICAL_S / y) ** 2 for each in self._held]
        self._num_samples += 1
        self._num_unsolved += 1
        relative = [value / scale / y for value, scale in zip(x, self._scales, strict=True)]
        for i, each in enumerate(relative):
            row = self._xx[
                i
            ]  # changed in place: a new list of each worker's each Load would be the collector's to look through
            for j, other in enumerate(relative):
                row[j] = FORGETTING * row[j] + each * other
            self._xy[i] = FORGETTING * self._xy[i] + each

    @property
    def weights(self) -> list[float]:
        """Nearly as good as those of all samples: a part or a few are left for the next time."""
        if self._num_unsolved > min(self._num_samples // REFIT_PARTS, MAX_UNSOLVED - 1):
            self._weights = self._best_weights()
            self._num_unsolved = 0
        return self._weights

    def _best_weights(self) -> list[float]:
        used = list(range(len(self._scales)))
        while used:
            found = self._solved(used)
            if all(weight >= 0 for weight in found):
                break
            used = [i for i, weight in zip(used, found, strict=True) if weight >= 0]  # the others are zero
        weights = [0.0] * len(self._scales)
        for i, weight in zip(used, found, strict=True):
            weights[i] = weight / self._scales[i]
        return weights

    def _solved(self, used: Sequence[int]) -> list[float]:
        """(XX + held) w = Xy + held * begin over the weights in use, by elimination: the matrix is positive definite."""
        rows = [
            [self._xx[i][j] + (self._held[i] if i == j else 0.0) for j in used]
            + [self._xy[i] + self._held[i] * self._begin[i]]
            for i in used
        ]
        for i, pivot in enumerate(rows):
            for row in rows[i + 1 :]:
                factor = row[i] / pivot[i]
                row[i:] = [value - factor * other for value, other in zip(row[i:], pivot[i:], strict=True)]
        found: list[float] = []
        for i in reversed(range(len(rows))):
            known = sum(map(operator.mul, rows[i][i + 1 : -1], found))
            found.insert(0, (rows[i][-1] - known) / rows[i][i])
        return found


class StepCost:
    """Of one worker. `observe` corrects it."""

    def __init__(
        self,
        *,
        base_s: float = 0.0,
        sequence_s: float = 0.0,
        context_s: float = 0.0,
        row_s: float = 0.0,
        pair_s: float = 0.0,
    ) -> None:
        self.base_s, self.sequence_s, self.context_s = base_s, sequence_s, context_s
        self.row_s, self.pair_s = row_s, pair_s
        self._decode = LinearFit((1.0, 32.0, 32768.0), (1.0, 0.01, 0.01), (base_s, sequence_s, context_s))
        self._prefill = LinearFit((512.0, 131072.0), (1.0, 1e-4), (row_s, pair_s))

    def copy(self) -> StepCost:
        """One that is corrected by itself from here on."""
        return StepCost(
            base_s=self.base_s,
            sequence_s=self.sequence_s,
            context_s=self.context_s,
            row_s=self.row_s,
            pair_s=self.pair_s,
        )

    def observe(self, step: Step, seconds: float) -> None:
        if seconds <= 0:
            return
        if step.prefill_rows == 0:
            if step.decode_rows > 0:
                self._decode.observe((1.0, step.decode_rows, step.context_tokens), seconds)
                self.base_s, self.sequence_s, self.context_s = self._decode.weights
            return
        left = seconds - self.sequence_s * step.decode_rows - self.context_s * step.context_tokens
        # Prefill rows that hide behind the reading of the weights show only that they don't take longer.
        if left > HIDDEN * self.base_s or self._prefill_s(step) > left > 0:
            self._prefill.observe((step.prefill_rows, step.attention_pairs), left)
            self.row_s, self.pair_s = self._prefill.weights

    def seconds(self, step: Step) -> float:
        prefill = self._prefill_s(step) if step.prefill_rows else 0.0
        beside = self.sequence_s * step.decode_rows + self.context_s * step.context_tokens
        return max(self.base_s, prefill) + beside

    def decode_s(self, rows: float, context_tokens: float) -> float:
        """Of a step without prefill."""
        return self.base_s + self.sequence_s * rows + self.context_s * context_tokens

    def prompt_s(self, tokens: float, first: float = 0.0) -> float:
        """Of a prompt's rows from `first` on, by themselves, in steps that are full."""
        rows = tokens - first
        return self.row_s * rows + self.pair_s * rows * (first + tokens) / 2

    def _prefill_s(self, step: Step) -> float:
        return self.row_s * step.prefill_rows + self.pair_s * step.attention_pairs
