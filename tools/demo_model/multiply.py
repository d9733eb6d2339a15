"""Skill: one digit times two digits, by partial products, in a sentence that ends with the result."""

from __future__ import annotations

from random import Random

import add
from add import ITEMS, in_words
from split import is_held_out

QUESTIONS = (
    "What is {a} x {b}?", "What is {a} times {b}?", "What's {a} * {b}?", "What's {a} times {b}?", "What is {a} * {b}?",
    "How much is {a} x {b}?", "How much is {a} times {b}?", "{a} x {b}", "{a}x{b}", "{a} * {b}", "{a}*{b}",
    "{a} × {b}", "{a}×{b}", "{a} x {b} = ?", "{a}*{b}=?", "{a} * {b} =", "{a}x{b}=", "{a} times {b}", "{a} times {b}?",
    "{a} x {b}?", "{a} × {b} = ?", "Multiply {a} by {b}.", "Please multiply {a} by {b}.", "Multiply {a} and {b}.",
    "Can you multiply {a} by {b}?", "Calculate {a} x {b}.", "Calculate {a} * {b}.", "Compute {a} x {b}.",
    "Can you calculate {a} times {b}?", "What is the product of {a} and {b}?", "The product of {a} and {b}?",
    "Tell me what {a} x {b} is.", "Can you tell me what {a} times {b} is?", "What does {a} * {b} equal?",
    "Please calculate {a} times {b}.", "Solve {a} x {b}.", "What is {a}*{b}?", "What is {a} × {b}?", "And {a} x {b}?",
    "What about {a} times {b}?", "Now multiply {a} by {b}.", "Please tell me {a} * {b}.", "{a} times {b} equals?",
    "What is {a} multiplied by {b}?", "How much is {a} multiplied by {b}?", "{a} multiplied by {b}",
    "What do you get when you multiply {a} by {b}?", "Calculate: {a} × {b}", "What is the result of {a} * {b}?",
    "I have {a} boxes with {b} {i} each. How many {i} are there?", "{a} bags with {b} {i} each: how many {i} is that?",
)  # fmt: skip


def pair(rng: Random, held_out: bool = False) -> tuple[int, int]:
    """A digit and a number of two digits.

    In training the sum of the partial products is a sum that may be trained.
    """
    while True:
        digit, number = rng.randint(0 if rng.random() < 0.1 else 2, 9), rng.randint(10, 99)
        if is_held_out("multiply", digit, number) == held_out and (
            held_out or add.may_be_trained(digit * (number - number % 10), digit * (number % 10))
        ):
            return digit, number


def working(digit: int, number: int) -> str:
    tens, ones = digit * (number - number % 10), digit * (number % 10)
    return (
        f"{digit} x {number - number % 10} = {tens}, {digit} x {number % 10} = {ones}, {tens} + {ones} = {tens + ones}."
    )


def answer(digit: int, number: int) -> str:
    """The digit comes first, whatever the question's order; two digits need no parts."""
    if number < 10:
        return f"{digit} x {number} = {digit * number}."
    return f"{digit} x {number}: {working(digit, number)} So {digit} x {number} = {digit * number}."


def exchange(rng: Random, held_out: bool = False) -> tuple[str, str]:
    """A question and its answer; in training at times the product of two digits."""
    digit, number = pair(rng, held_out)
    if not held_out and rng.random() < 0.15:
        number = rng.randint(0, 9)
        return question(rng, digit, number), answer(digit, number)
    a, b = (digit, number) if rng.random() < 0.6 else (number, digit)
    return question(rng, a, b), answer(digit, number)


def question(rng: Random, a: int, b: int) -> str:
    spell = in_words if rng.random() < 0.05 else str
    text = rng.choice(QUESTIONS).format(a=spell(a), b=spell(b), i=rng.choice(ITEMS))
    return text[0].upper() + text[1:]
