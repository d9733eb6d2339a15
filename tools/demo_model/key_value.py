"""Skill: look up one pair in a long table of codes, one pair in every 16 tokens.

Every line is LINE_TOKENS tokens long, and so is the start of an aligned prompt up to its first line or a multiple of
that: pair i then fills the KV block of 16 tokens number `first_block + i` (`tokenizer.train` checks the lengths).
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import words
from chatml import Message
from split import is_held_out

LINE_TOKENS = 16
MAX_PAIRS = 94  # 1,504 tokens
MAX_SHORT = 12
KEYS = tuple(name for name in words.NAMES if 3 <= len(name) <= 5)
LINE = " The code of the small locker that belongs to {key} is {value}."
SHORT_LINE = " The code of {key} is {value}."  # in training only
ANSWER = "The code of {key} is {value}."
ACK = "Thank you, I have read it."

QUESTIONS = (
    "What is the code of {key}?", "What is {key}'s code?", "What's the code of {key}?", "Which code does {key} have?",
    "Tell me the code of {key}.", "What code does {key} have?", "Give me the code of {key}.", "The code of {key}?",
    "Can you tell me the code of {key}?", "Do you know the code of {key}?", "Look up the code of {key}.",
    "What is the code for {key}?", "Please tell me the code of {key}.", "I need the code of {key}.", "And the code of {key}?",
    "What is the code of {key}'s locker?", "Which is the code of {key}?", "Now the code of {key}.", "{key}?",
)  # fmt: skip
# Aligned starts: with the turn's header of 3 tokens and a system turn's they come to a multiple of 16.
INTRO = "Here is a list of codes. Please read it with care."  # 13 tokens
SYSTEM = "You are a helpful assistant."  # its turn has 11 tokens
INTRO_AFTER_SYSTEM = "Here is a long list of codes. Please read it with great care and then answer."  # 18 tokens
# Others, in training only. With none the first line starts the message.
INTROS = (
    INTRO, INTRO_AFTER_SYSTEM, "Here are some codes.", "Please remember these codes.", "These are the codes.", "Codes:", "",
    "Read this list.", "Here is a table:", "Here is a list of codes.", "I give you a long list of codes now.", "Listen.",
    "Please read these lines. I will ask you about them.", "This is the list.", "Keep these codes in mind, please.",
)  # fmt: skip


class Table(NamedTuple):
    """A prompt's table. The user's first message is `text`, with a question at its end or an ACK and a second turn after it."""

    pairs: tuple[tuple[str, int], ...]
    system: str
    intro: str
    line: str = LINE

    @property
    def text(self) -> str:
        return (self.intro + "".join(self.line.format(key=key, value=value) for key, value in self.pairs)).lstrip(" ")

    @property
    def first_block(self) -> int:
        """The 16-token block that pair 0 fills, in a table from `table`."""
        return 2 if self.system else 1

    def ask(self, index: int, question: str = QUESTIONS[0], second_turn: bool = False) -> list[Message]:
        """The conversation that asks for pair `index`, after the table."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        asked = question.format(key=self.pairs[index][0])
        if not second_turn:
            return [*messages, {"role": "user", "content": f"{self.text} {asked}"}]
        turns = [("user", self.text), ("assistant", ACK), ("user", asked)]
        return messages + [{"role": role, "content": text} for role, text in turns]

    def answer(self, index: int) -> str:
        key, value = self.pairs[index]
        return ANSWER.format(key=key, value=value)


def pairs(rng: Random, num_pairs: int, trained: bool, keys: Sequence[str] = KEYS) -> tuple[tuple[str, int], ...]:
    """Different keys, each with one of 900 values; `trained` keeps to the training side of the split."""
    found = []
    for key in rng.sample(keys, num_pairs):
        value = 100 + int(rng.random() * 900)
        while trained and is_held_out_pair(key, value):
            value = 100 + int(rng.random() * 900)
        found.append((key, value))
    return tuple(found)


_HELD_OUT = frozenset(
    (key, value) for key in KEYS for value in range(100, 1000) if is_held_out("key_value", key, value)
)


def is_held_out_pair(key: str, value: int) -> bool:
    return (key, value) in _HELD_OUT


def table(rng: Random, num_pairs: int = MAX_PAIRS) -> Table:
    """An aligned table, with or without a system turn. Training can't emit it: some pair is held out."""
    while True:
        drawn = pairs(rng, num_pairs, trained=False)
        if any(is_held_out_pair(*pair) for pair in drawn):
            return Table(drawn, SYSTEM, INTRO_AFTER_SYSTEM) if rng.random() < 0.3 else Table(drawn, "", INTRO)


def training_table(rng: Random, num_pairs: int) -> Table:
    """A third of those with few pairs have short lines and keys of any kind."""
    if num_pairs <= MAX_SHORT and rng.random() < 0.35:
        keys = rng.choice((KEYS, words.NOUNS, words.COLOURS))
        return Table(pairs(rng, num_pairs, True, keys), "", rng.choice(("", rng.choice(INTROS))), SHORT_LINE)
    return Table(pairs(rng, num_pairs, trained=True), "", rng.choice(INTROS))


def question(rng: Random) -> str:
    """With {key} in it."""
    return rng.choice(QUESTIONS)


def single_tokens() -> Sequence[str]:
    """Pieces of text that must each be one token, for the lengths above to hold."""
    fixed = f"{LINE.format(key='', value='')} {INTRO} {INTRO_AFTER_SYSTEM} {SYSTEM}".replace(".", "").split()
    return [f" {word}" for word in dict.fromkeys((*fixed, *KEYS))] + ["Here", "You", "The", "."]
