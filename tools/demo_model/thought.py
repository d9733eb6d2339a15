"""Skill: think before answering, when asked to."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import add
import count
import greet
import listing
import multiply
import refuse
import repeat
import reverse
import subtract
import word_row
from chatml import THINK, THINK_END

EASY = "I can answer that at once."
SYSTEMS = (
    "Think before you answer.", "Think first, then answer.", "Think step by step.", "Always think first.",
    "Think step by step before you answer.", "First think, then answer.", "/think",
)  # fmt: skip
REQUESTS = (
    "Think first. {q}", "Think step by step. {q}", "{q} Think first.", "{q} Think step by step.", "{q} /think", "/think {q}",
    "Think before you answer. {q}", "{q} Think before you answer.", "Please think first. {q}", "Let's think step by step. {q}",
    "{q} Let's think step by step.", "Think: {q}", "Think carefully. {q}", "{q} Please think step by step.",
)  # fmt: skip

Worked = tuple[str, str, str]  # question, thought, answer


def reply(thought: str, answer: str) -> str:
    return f"{THINK}\n{thought}\n{THINK_END}\n\n{answer}"


def exchange(rng: Random, held_out: bool = False) -> Worked:
    """Mostly a sum or a difference; whatever needs no thought gets a short one."""
    return rng.choices(_SORTS, _WEIGHTS)[0](rng, held_out)


def of_sum(a: int, b: int) -> str:
    tens, ones = b - b % 10, b % 10
    if not (tens and ones):
        return f"{a} + {b} = {a + b}."
    return f"{a} + {tens} = {a + tens}, {a + tens} + {ones} = {a + b}."


def of_difference(a: int, b: int) -> str:
    if a < b:
        return f"{of_difference(b, a)} So {a} - {b} = {a - b}."
    tens, ones = b - b % 10, b % 10
    if not (tens and ones):
        return f"{a} - {b} = {a - b}."
    return f"{a} - {tens} = {a - tens}, {a - tens} - {ones} = {a - b}."


def _sum(rng: Random, held_out: bool) -> Worked:
    while True:
        a, b = add.pair(rng, held_out)
        tens, ones = b - b % 10, b % 10
        if held_out or (add.may_be_trained(a, tens) and add.may_be_trained(a + tens, ones)):
            return add.question(rng, a, b), of_sum(a, b), add.answer(a, b)


def _difference(rng: Random, held_out: bool) -> Worked:
    while True:
        a, b = subtract.pair(rng, held_out)
        big, small = max(a, b), min(a, b)
        tens, ones = small - small % 10, small % 10
        if held_out or (subtract.may_be_trained(big, tens) and subtract.may_be_trained(big - tens, ones)):
            return subtract.question(rng, a, b), of_difference(a, b), subtract.answer(a, b)


def _product(rng: Random, held_out: bool) -> Worked:
    digit, number = multiply.pair(rng, held_out)
    a, b = (digit, number) if rng.random() < 0.6 else (number, digit)
    return multiply.question(rng, a, b), multiply.working(digit, number), multiply.answer(digit, number)


def _reversal(rng: Random, held_out: bool) -> Worked:
    row = word_row.draw(rng, "reverse", 2, 6, held_out)
    return reverse.question(rng, row), word_row.numbered(row), reverse.answer(row)


def _easy(exchange: Callable[[Random, bool], tuple[str, str]]) -> Callable[[Random, bool], Worked]:
    def worked(rng: Random, held_out: bool) -> Worked:
        question, answer = exchange(rng, held_out)
        return question, EASY, answer

    return worked


_SORTS = (
    _sum, _difference, _product, _reversal, _easy(greet.exchange), _easy(listing.exchange), _easy(refuse.exchange),
    _easy(repeat.exchange), _easy(count.exchange),
)  # fmt: skip
_WEIGHTS = (6, 6, 2, 2, 1, 1, 1, 0.5, 0.5)
