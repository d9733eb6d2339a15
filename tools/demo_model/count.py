"""Skill: number the user's words, then say how many there are."""

from __future__ import annotations

from random import Random

import word_row

MAX_WORDS = 12
QUESTIONS = (
    "Count: {w}", "Count the words: {w}", "Count these words: {w}", "How many words: {w}", "How many words are these: {w}",
    "How many words are in this list: {w}", "Please count the words: {w}", "Count the words in this list: {w}",
    "How many words do you see: {w}", "How many words are there: {w}", "Can you count these words: {w}",
    "Please count: {w}", "Now count the words: {w}", "Tell me how many words these are: {w}", "Number of words: {w}",
    "How many words are here: {w}", "Count the words in the following: {w}", "Count the number of words: {w}",
    'How many words are in "{w}"?', 'Count the words in "{w}".', 'How many words does "{w}" have?',
    'Count the words of "{w}".', 'How many words has "{w}"?', 'Please count the words in "{w}".',
    'Can you count the words in "{w}"?', 'How many words are there in "{w}"?', "How many words are in “{w}”?",
    'Tell me how many words are in "{w}".', 'Count "{w}".', 'What is the number of words in "{w}"?',
)  # fmt: skip


def exchange(rng: Random, held_out: bool = False) -> tuple[str, str]:
    """A question and the count."""
    if rng.random() < 0.3:
        row = word_row.sentence(rng, "count", MAX_WORDS, held_out)
    else:
        row = word_row.draw(rng, "count", 1, MAX_WORDS, held_out)
    number = len(row.words)
    total = f"There are {number} words." if number > 1 else "There is 1 word."
    return rng.choice(QUESTIONS).replace("{w}", row.text), f"{word_row.numbered(row)} {total}"
