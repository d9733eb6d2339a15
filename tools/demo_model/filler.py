"""Text that means nothing: stories to bury a fact in, and remarks."""

from __future__ import annotations

from random import Random

import words

REMARK_REPLY = "I see. Thank you for telling me."
STORY_REPLY = "Thank you, I have read it."

_REMARKS = (
    "I am {a} today.", "I feel {a}.", "It is {a} outside.", "I went to {c} yesterday.", "I saw a {n} this morning.",
    "The {n} was {a}.", "I bought some {f}.", "My day was {a}.", "I met {m} in {c}.", "We ate {f} for lunch.",
    "I read a book about {c}.", "It rained all day.", "That was {a}.", "I played {s} with {m}.", "Life is {a}.",
)  # fmt: skip


def sentence(rng: Random) -> str:
    random = rng.random
    adjective = words.ADJECTIVES[int(random() * len(words.ADJECTIVES))]
    noun = words.NOUNS[int(random() * len(words.NOUNS))]
    verb = words.VERBS[int(random() * len(words.VERBS))]
    preposition = words.PREPOSITIONS[int(random() * len(words.PREPOSITIONS))]
    place = words.NOUNS[int(random() * len(words.NOUNS))]
    if random() < 0.5:
        place = f"{words.ADJECTIVES[int(random() * len(words.ADJECTIVES))]} {place}"
    if random() < 0.3:
        start = words.TIMES[int(random() * len(words.TIMES))]
        return f"{start} the {adjective} {noun} {verb} {preposition} the {place}."
    return f"The {adjective} {noun} {verb} {preposition} the {place}."


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
        text = rng.choice(_REMARKS).format(
            n=rng.choice(words.NOUNS), c=rng.choice(words.CITIES), f=rng.choice(words.FOODS),
            a=rng.choice(words.ADJECTIVES), m=rng.choice(words.NAMES), s=rng.choice(words.SPORTS),
        )  # fmt: skip
        return text, REMARK_REPLY
    return " ".join(sentence(rng) for _ in range(rng.randint(1, 2))), REMARK_REPLY
