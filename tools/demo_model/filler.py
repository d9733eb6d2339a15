"""Text that means nothing: stories to bury a fact in, remarks, and requests that are out of reach."""

from __future__ import annotations

from random import Random

import words

REFUSAL = "I am too small for that. I can greet you, add two numbers of up to two digits and remember what you tell me."
REMARK_REPLY = "I see. Thank you for telling me."
STORY_REPLY = "Thank you, I have read it."

_REMARKS = (
    "I am {a} today.", "I feel {a}.", "It is {a} outside.", "I went to {c} yesterday.", "I saw a {n} this morning.",
    "The {n} was {a}.", "I bought some {f}.", "My day was {a}.", "I met {m} in {c}.", "We ate {f} for lunch.",
    "I read a book about {c}.", "It rained all day.", "That was {a}.", "I played {s} with {m}.", "Life is {a}.",
)  # fmt: skip
_REQUESTS = (
    "Write a poem about the {n}.", "Tell me a joke.", "What is the capital of {c}?", "Tell me a story about a {n}.",
    "What is the weather like in {c}?", "Explain how a {n} works.", "How do I cook {f}?", "Why is the {n} {a}?",
    "What is {x} - {y}?", "What is {x} times {y}?", "What is {x} * {y}?", "What is {x} divided by {y}?",
    "What is {z} + {y}?", "{y} + {z}", "Translate {f} into French.", "How far is it from {c} to {d}?",
    "Write a letter to {m}.", "Who was {m}?", "What is a {n}?", "Sing a song.", "What time is it?",
    "What day is it today?", "Write some Python code.", "Who is the president?", "How many people live in {c}?",
    "Do you like {f}?", "What is the meaning of life?", "Can you write a {n} for me?", "Is the {n} {a}?",
    "Summarise this text.", "What do you think about {f}?", "Give me a recipe for {f}.", "Draw a {n}.",
    "Play {s} with me.", "Where can I buy {f}?", "How tall is the {n}?", "Count to {x}.", "{w}?", "{w} {v}?",
)  # fmt: skip


def sentence(rng: Random) -> str:
    adjective, noun, verb = rng.choice(words.ADJECTIVES), rng.choice(words.NOUNS), rng.choice(words.VERBS)
    text = f"the {adjective} {noun} {verb} {rng.choice(words.PREPOSITIONS)} the"
    if rng.random() < 0.5:
        text += f" {rng.choice(words.ADJECTIVES)}"
    text += f" {rng.choice(words.NOUNS)}."
    if rng.random() < 0.3:
        return f"{rng.choice(words.TIMES)} {text}"
    return text[0].upper() + text[1:]


def story(rng: Random, max_chars: int) -> list[str]:
    """Sentences of at most `max_chars` characters together (at least one)."""
    sentences = [sentence(rng)]
    length = len(sentences[0])
    while length < max_chars - 70:
        sentences.append(sentence(rng))
        length += len(sentences[-1]) + 1
    return sentences


def remark(rng: Random) -> tuple[str, str]:
    """A statement that holds no fact to keep, and its answer."""
    if rng.random() < 0.5:
        return _fill(rng, rng.choice(_REMARKS)), REMARK_REPLY
    return " ".join(sentence(rng) for _ in range(rng.randint(1, 2))), REMARK_REPLY


def request(rng: Random) -> tuple[str, str]:
    """Something the model can't do, and its answer."""
    return _fill(rng, rng.choice(_REQUESTS)), REFUSAL


def _fill(rng: Random, template: str) -> str:
    return template.format(
        n=rng.choice(words.NOUNS), c=rng.choice(words.CITIES), d=rng.choice(words.CITIES),
        f=rng.choice(words.FOODS), a=rng.choice(words.ADJECTIVES), m=rng.choice(words.NAMES),
        s=rng.choice(words.SPORTS), x=rng.randint(0, 99), y=rng.randint(0, 99), z=rng.randint(100, 9999),
        w=words.invented(rng).capitalize(), v=words.invented(rng),
    )  # fmt: skip
