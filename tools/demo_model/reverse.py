"""Skill: say the user's words in reverse order."""

from __future__ import annotations

from random import Random

import word_row
from word_row import WordRow

QUESTIONS = (
    "Reverse: {w}", "Reverse the words: {w}", "Reverse these words: {w}", "Reverse the order: {w}", "Please reverse: {w}",
    "Reverse the order of these words: {w}", "Say these words in reverse order: {w}", "Backwards: {w}",
    "Put these words in reverse order: {w}", "Turn these words around: {w}", "Say backwards: {w}", "In reverse: {w}",
    "Repeat these words in reverse order: {w}", "Reverse this list: {w}", "Write these words backwards: {w}",
    "Can you reverse these words: {w}", "Please reverse the words: {w}", "Now reverse: {w}",
    "Say the words in reverse order: {w}", "Repeat backwards: {w}", "Reverse the order of the words: {w}",
    'Reverse "{w}".', 'Reverse the words "{w}".', 'Reverse the order of "{w}".', 'Say "{w}" backwards.',
    'Can you reverse "{w}"?', 'Please reverse "{w}".', 'Say "{w}" in reverse order.', 'Reverse: "{w}"',
    'What is "{w}" in reverse order?', 'Turn "{w}" around.', "Reverse “{w}”.", 'Reverse the words in "{w}".',
)  # fmt: skip


def answer(row: WordRow) -> str:
    return row.separator.join(reversed(row.words))


def exchange(rng: Random, held_out: bool = False) -> tuple[str, str]:
    """A request and the reversed words."""
    row = word_row.draw(rng, "reverse", 2, 8, held_out)
    return question(rng, row), answer(row)


def question(rng: Random, row: WordRow) -> str:
    return rng.choice(QUESTIONS).replace("{w}", row.text)
