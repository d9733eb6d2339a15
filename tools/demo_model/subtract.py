"""Skill: the difference of two numbers of up to two digits, in a sentence; it may be negative."""

from __future__ import annotations

from random import Random

from add import ITEMS, in_words
from split import is_held_out

QUESTIONS = (
    "What is {a} - {b}?", "What is {a} minus {b}?", "What's {a} - {b}?", "What's {a} minus {b}?",
    "How much is {a} - {b}?", "How much is {a} minus {b}?", "{a} - {b}", "{a}-{b}", "{a} - {b} = ?",
    "{a}-{b}=?", "{a} - {b} =", "{a}-{b}=", "{a} minus {b}", "{a} minus {b}?", "{a} - {b}?",
    "Subtract {b} from {a}.", "Please subtract {b} from {a}.", "Can you subtract {b} from {a}?",
    "Take {b} away from {a}.", "Take {b} from {a}.", "Calculate {a} - {b}.", "Compute {a} - {b}.", "Compute {a}-{b}",
    "Can you calculate {a} - {b}?", "Tell me what {a} - {b} is.", "Can you tell me what {a} minus {b} is?",
    "What do you get when you subtract {b} from {a}?", "What does {a} - {b} equal?", "Solve {a} - {b}.",
    "Please calculate {a} minus {b}.", "What is {a}-{b}?", "And {a} - {b}?", "What about {a} - {b}?",
    "Now subtract {b} from {a}.", "Please tell me {a} - {b}.", "What is the result of {a} - {b}?",
    "{a} minus {b} equals?", "{a} - {b} equals", "Calculate: {a} - {b}", "What is {a} − {b}?", "{a} − {b}",
    "What is {a} less {b}?", "What is {a} take away {b}?", "How much is {a} minus {b} please?",
)  # fmt: skip
# Only where something is left.
STORIES = (
    "What is the difference between {a} and {b}?", "The difference of {a} and {b}?", "Give me the difference of {a} and {b}.",
    "I have {a} {i} and give away {b}. How many {i} are left?", "I have {a} {i} and lose {b}. How many {i} do I have?",
    "There are {a} {i} and I take {b}. How many {i} are left?", "If I have {a} {i} and eat {b}, how many are left?",
    "I had {a} {i} and sold {b} of them. How many do I have now?", "How much bigger is {a} than {b}?",
)  # fmt: skip


def may_be_trained(a: int, b: int) -> bool:
    """Whether a - b may be written anywhere in training."""
    return not is_held_out("subtract", min(a, b), max(a, b))


def pair(rng: Random, held_out: bool = False) -> tuple[int, int]:
    """Two numbers from 0 to 99, the greater one mostly first; both orders lie on the same side of the split."""
    while True:
        a, b = (rng.randint(0, 9 if rng.random() < 0.15 else 99) for _ in range(2))
        if may_be_trained(a, b) != held_out:
            return (b, a) if a < b and rng.random() < 0.4 else (a, b)


def answer(a: int, b: int) -> str:
    return f"{a} - {b} = {a - b}."


def exchange(rng: Random, held_out: bool = False) -> tuple[str, str]:
    """A question and its answer."""
    a, b = pair(rng, held_out)
    return question(rng, a, b), answer(a, b)


def question(rng: Random, a: int, b: int) -> str:
    spell = in_words if rng.random() < 0.06 else str
    questions = STORIES if a >= b and rng.random() < 0.15 else QUESTIONS
    text = rng.choice(questions).format(a=spell(a), b=spell(b), i=rng.choice(ITEMS))
    return text[0].upper() + text[1:]
