"""Rows of words to be repeated, reversed or counted, and the marks that show where they begin."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

import filler
import words
from split import is_held_out

WORDS = tuple(dict.fromkeys(word for group in (
    words.NOUNS, words.COLOURS, words.FRUITS, words.ANIMALS, words.WILD_ANIMALS, words.FOODS, words.FLOWERS,
    words.ADJECTIVES, words.VERBS, words.SPORTS, words.PLACED_THINGS, words.SEASONS, words.PLACES, words.COMMON,
) for word in group))  # fmt: skip


class WordRow(NamedTuple):
    words: list[str]
    separator: str

    @property
    def text(self) -> str:
        return self.separator.join(self.words)


def draw(rng: Random, skill: str, low: int, high: int, held_out: bool) -> WordRow:
    """`low` to `high` different words of the wanted side of the split; one in ten is invented."""
    while True:
        row = rng.sample(WORDS, rng.randint(low, high))
        if rng.random() < 0.35:
            row = [words.coined(rng) if rng.random() < 0.3 else word for word in row]
        if len(set(row)) == len(row) and is_held_out(skill, *row) == held_out:
            return WordRow(row, ", " if rng.random() < 0.12 else " ")


def sentence(rng: Random, skill: str, high: int, held_out: bool) -> WordRow:
    """The words of a sentence, at most `high`, some of them twice."""
    while True:
        row = filler.sentence(rng).lower().rstrip(".").split()
        if len(row) <= high and is_held_out(skill, *row) == held_out:
            return WordRow(row, " ")


def numbered(row: WordRow) -> str:
    """1 apple, 2 river, 3 stone."""
    return ", ".join(f"{index} {word}" for index, word in enumerate(row.words, 1)) + "."
