"""Skill: the sum of two numbers of up to two digits, in a sentence."""

from __future__ import annotations

from random import Random

from split import is_held_out
from words import word_list

QUESTIONS = (
    "What is {a} + {b}?", "What is {a} plus {b}?", "What's {a} + {b}?", "What's {a} plus {b}?",
    "How much is {a} + {b}?", "How much is {a} plus {b}?", "{a} + {b}", "{a}+{b}", "{a} + {b} = ?",
    "{a}+{b}=?", "{a} + {b} =", "{a}+{b}=", "{a} plus {b}", "{a} plus {b}?", "{a} + {b}?",
    "Add {a} and {b}.", "Please add {a} and {b}.", "Can you add {a} and {b}?", "Add {a} to {b}.",
    "Could you add {a} and {b} for me?", "Calculate {a} + {b}.", "Compute {a} + {b}.", "Compute {a}+{b}",
    "Can you calculate {a} + {b}?", "What is the sum of {a} and {b}?", "The sum of {a} and {b}?",
    "Give me the sum of {a} and {b}.", "Tell me what {a} + {b} is.", "Can you tell me what {a} plus {b} is?",
    "What do you get when you add {a} and {b}?", "What does {a} + {b} equal?", "Do you know what {a} + {b} is?",
    "Please calculate {a} plus {b}.", "Solve {a} + {b}.", "What is {a}+{b}?", "And {a} + {b}?",
    "What about {a} + {b}?", "Now add {a} and {b}.", "Please tell me {a} + {b}.", "Sum {a} and {b}.",
    "What is the result of {a} + {b}?", "{a} plus {b} equals?", "{a} + {b} equals", "Calculate: {a} + {b}",
    "How much do {a} and {b} make?", "How much is {a} and {b}?", "Add up {a} and {b}.", "{a} and {b} make?",
    "Add the numbers {a} and {b}.", "What is the total of {a} and {b}?", "What is {a} plus {b} please?",
    "I have {a} {i} and get {b} more. How many {i} do I have?", "I have {a} {i} and you give me {b}. How many {i} do I have?",
    "If I have {a} {i} and find {b} {i}, how many {i} do I have?", "There are {a} {i} and {b} {i}. How many {i} are there?",
    "{a} {i} plus {b} {i} makes how many?", "I buy {a} {i}, then {b} more. How many {i} is that?",
)  # fmt: skip


ITEMS = ("apples", "coins", "books", "pens", "stones", "eggs", "cards", "cookies", "balls", "pears", "cups", "euros")
_UNITS = word_list("""
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen
""")
_TENS = word_list("twenty thirty forty fifty sixty seventy eighty ninety")


def in_words(number: int) -> str:
    """0 … 99 in English."""
    if number < 20:
        return _UNITS[number]
    tens, unit = divmod(number, 10)
    return _TENS[tens - 2] + (f"-{_UNITS[unit]}" if unit else "")


def pair(rng: Random, held_out: bool = False) -> tuple[int, int]:
    """Two numbers from 0 to 99; both orders of a pair lie on the same side of the split."""
    while True:
        a, b = (rng.randint(0, 9 if rng.random() < 0.15 else 99) for _ in range(2))
        if is_held_out("add", min(a, b), max(a, b)) == held_out:
            return a, b


def may_be_trained(a: int, b: int) -> bool:
    """Whether a + b may be written anywhere in training."""
    return a > 99 or b > 99 or not is_held_out("add", min(a, b), max(a, b))


def answer(a: int, b: int) -> str:
    return f"{a} + {b} = {a + b}."


def exchange(rng: Random, held_out: bool = False) -> tuple[str, str]:
    """A question and its answer; in training at times a sum such as a product's parts make."""
    a, b = pair(rng, held_out)
    if not held_out and rng.random() < 0.1:
        a, b = rng.randint(10, 81) * 10, rng.randint(0, 81)
    return question(rng, a, b), answer(a, b)


def question(rng: Random, a: int, b: int) -> str:
    spell = in_words if rng.random() < 0.06 and a < 100 else str
    text = rng.choice(QUESTIONS).format(a=spell(a), b=spell(b), i=rng.choice(ITEMS))
    return text[0].upper() + text[1:]
