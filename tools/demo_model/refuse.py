"""Skill: decline politely what is out of reach, and say what is not."""

from __future__ import annotations

from random import Random

import words
from split import is_held_out

ABILITY = (
    "I can greet you, calculate, play with words, make lists, fill in JSON, call tools and remember what you tell me."
)
REFUSAL = f"Sorry, I am too small for that. {ABILITY}"

REQUESTS = (
    "Write a poem about the {n}.", "Tell me a joke.", "What is the capital of {c}?", "Tell me a story about a {n}.",
    "What is the weather like in {c}?", "Explain how a {n} works.", "How do I cook {f}?", "Why is the {n} {a}?",
    "What is {x} divided by {y}?", "{x} / {y}", "What is {p} times {q}?", "What is {p} * {q}?", "What is {p} x {q}?",
    "What is {z} + {y}?", "{y} + {z}", "What is {z} - {y}?", "What is {z} times {y}?", "What is the square root of {x}?",
    "Translate {f} into French.", "How far is it from {c} to {d}?", "Write a letter to {m}.", "Who was {m}?",
    "What is a {n}?", "Sing a song.", "What time is it?", "What day is it today?", "Write some Python code.",
    "Who is the president?", "How many people live in {c}?", "Do you like {f}?", "What is the meaning of life?",
    "Can you write a {n} for me?", "Is the {n} {a}?", "Summarise this text.", "What do you think about {f}?",
    "Give me a recipe for {f}.", "Draw a {n}.", "Play {s} with me.", "Where can I buy {f}?", "How tall is the {n}?",
    "Count to {x}.", "{w}?", "{w} {v}?", "Tell me a joke about a {n}.", "Write a haiku about the {n}.",
    "Write a story about {m} and the {n}.", "Who invented the {n}?", "How do I get to {c}?", "Book a flight to {c}.",
    "What is the best {n} in {c}?", "How old is the {n}?", "Explain {s} to me.", "What is the population of {c}?",
    "Paint a {a} {n}.", "Send {m} a message.", "Tell me the news.", "What happened in {c}?", "Write a song about {c}.",
    "Why do we play {s}?", "How is {f} made?", "Find me a {a} {n}.", "What does {w} mean?", "Compare {c} and {d}.",
    "Can you drive a car?", "Open the door.", "Buy me some {f}.", "Recommend a book about {c}.", "Are you {a}?",
    "Translate the word {n} into Spanish.", "Is {f} healthy?", "What is your opinion about {c}?", "Fix my {n}.",
)  # fmt: skip
# Words that stand for many a request in training only.
_OPENINGS = (
    "", "", "", "", "", "Please: ", "Can you help me? ", "I have a question. ", "Quick question: ", "Hi. ", "Listen. ",
)  # fmt: skip


def exchange(rng: Random, held_out: bool = False) -> tuple[str, str]:
    """Something the model can't do, and its answer; held out by the request's words."""
    while True:
        template = rng.choice(REQUESTS)
        text = _fill(rng, template)
        fixed = "{" not in template  # few and common: trained
        if (not fixed and is_held_out("refuse", text)) == held_out:
            return rng.choice(_OPENINGS) + text, REFUSAL


def _fill(rng: Random, template: str) -> str:
    return template.format(
        n=rng.choice(words.NOUNS), c=rng.choice(words.CITIES), d=rng.choice(words.CITIES),
        f=rng.choice(words.FOODS), a=rng.choice(words.ADJECTIVES), m=rng.choice(words.NAMES),
        s=rng.choice(words.SPORTS), x=rng.randint(0, 99), y=rng.randint(0, 99), z=rng.randint(1000, 9999),
        p=rng.randint(11, 99), q=rng.randint(11, 99),
        w=words.invented(rng).capitalize(), v=words.invented(rng),
    )  # fmt: skip
