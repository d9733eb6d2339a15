"""Workloads: which prompts are due when. Seeded: equal arguments give equal workloads."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rtp_llm.errors import ConfigError

FIRST_TOKEN_ID = 3  # below are a vocabulary's special tokens, as a rule


@dataclass(frozen=True)
class Lengths:
    """Tokens, drawn evenly from `low` to `high`."""

    low: int
    high: int

    @classmethod
    def of(cls, text: str) -> Lengths:
        """From "128" or "64-512".

        Raises:
            ValueError: it isn't such, or not at least 1.
        """
        low, dash, high = text.partition("-")
        found = cls(int(low), int(high if dash else low))
        if not 1 <= found.low <= found.high:
            raise ValueError(f"not a range of at least 1: {text}")
        return found

    def draw(self, source: random.Random) -> int:
        return source.randint(self.low, self.high)


@dataclass(frozen=True)
class Arrival:
    """One request: due `due_s` after the start."""

    due_s: float
    prompt: Sequence[int]
    output_tokens: int


@dataclass(frozen=True)
class Traced:
    """A line of a trace: one request as long as it is to be."""

    number: int
    due_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: Sequence[int]  # ids of the prompt's


@dataclass(frozen=True)
class Trace:
    """A file with a JSON object a line, as the Mooncake paper's traces have it: `timestamp` (ms), `input_length`,
    `output_length`, and `hash_ids`, one for each `block_tokens` of the prompt: equal ids are equal text.

    Lengths, blocks included, are divided by `divide` and end at `longest`; times are divided by `speed`.
    """

    file: Path
    divide: int = 1
    longest: int = 1 << 20
    speed: float = 1.0
    block_tokens: int = 512

    def arrivals(self, count: int | None, vocabulary: int, seed: int) -> Iterator[Arrival]:
        """The first `count`, their prompts of ids below `vocabulary`.

        Raises:
            ConfigError: as lines().
        """
        block = max(self.block_tokens // self.divide, 1)
        for line in self.lines(count):
            length = line.prompt_tokens
            tokens = [
                token
                for each in line.blocks[: -(-length // block)]
                for token in _tokens(f"{seed}/{each}", block, vocabulary)
            ]
            tokens += _tokens(f"{seed}/line {line.number}", max(length - len(tokens), 0), vocabulary)
            yield Arrival(line.due_s, tokens[:length], line.output_tokens)

    def lines(self, count: int | None) -> Iterator[Traced]:
        """The first `count`, without their prompts.

        Raises:
            ConfigError: the file can't be read, or a line isn't such an object; names it.
        """
        try:
            lines = self.file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"trace {self.file}: {error}") from error
        for number, line in enumerate(islice(lines, count), 1):
            try:
                row = json.loads(line)
                at, prompt, output = float(row["timestamp"]), int(row["input_length"]), int(row["output_length"])
                ids = [int(each) for each in row.get("hash_ids", [])]
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"trace {self.file}, line {number}: {error!r}") from error
            prompt, output = (min(max(each // self.divide, 1), self.longest) for each in (prompt, output))
            yield Traced(number, at / 1000 / self.speed, prompt, output, ids)


def _tokens(seed: str, count: int, vocabulary: int) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(FIRST_TOKEN_ID, vocabulary) for _ in range(count)]


def random_prompts(
    count: int, rate: float, prompt: Lengths, output: Lengths, vocabulary: int, seed: int
) -> Iterator[Arrival]:
    """`rate` requests/s, the times between them exponentially distributed (Poisson arrivals); infinite: all at once."""
    source = random.Random(seed)
    due_s = 0.0
    for number in range(count):
        yield Arrival(due_s, _tokens(f"{seed}/{number}", prompt.draw(source), vocabulary), output.draw(source))
        due_s += source.expovariate(rate) if rate < float("inf") else 0.0
