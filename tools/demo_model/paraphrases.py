"""Two sentences that say the same in other words: facts told, facts asked for, sums, requests.

The split is the chat model's: sums by unordered pair, facts by (kind, subject, value). Questions are kept apart by
(kind, subject), requests by their wording. ASCII only: rare characters have no place in a small vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import NamedTuple

import add
import kinds
import words
from split import is_held_out


class Pair(NamedTuple):
    first: str
    second: str
    meaning: str  # equal for pairs that say the same


_WISHES = (
    "{w}.", "Please {w}.", "Can you {w}?", "Could you {w}?", "I want you to {w}.", "Would you {w}, please?",
    "I would like you to {w}.", "I need you to {w}.", "Will you {w}?", "It would be nice if you could {w}.", "You should {w}.",
)  # fmt: skip
_DEEDS = (
    "write a letter to {m}", "draw a {a} {n}", "translate {f} into French", "tell me a story about a {a} {n}",
    "give me a recipe for {f}", "play {s} with me", "sing a song about {c}", "explain how a {n} works",
    "book a flight from {c} to {d}", "cook {f} for {m}", "write a poem about the {a} {n}", "call {m} in {c}",
    "find a {n} in {c}", "buy {f} and {g}", "tell {m} a joke about {f}", "send the {n} to {m}", "paint the {n} {v}",
)  # fmt: skip


def _two(rng: Random, templates: tuple[str, ...]) -> tuple[str, str]:
    first, second = rng.sample(templates, 2)
    return first, second


def told(rng: Random, held_out: bool) -> Pair:
    while True:
        fact = kinds.draw(rng, held_out)
        if len(fact.kind.tells) > 1 and fact.fill("{p}{v}").isascii():
            first, second = (fact.fill(text) for text in _two(rng, fact.kind.tells))
            return Pair(first, second, f"told {fact.key} {fact.value.lower()}")


def asked(rng: Random, held_out: bool) -> Pair:
    """Questions without a subject ("How old am I?") are few, so all of them are training material."""
    while True:
        fact = kinds.draw(rng)
        kind, subject = fact.key
        if (bool(subject) and is_held_out("asked", kind, subject)) == held_out and subject.isascii():
            first, second = (fact.fill(text) for text in _two(rng, fact.kind.asks))
            return Pair(first, second, f"asked {fact.key}")


def summed(rng: Random, held_out: bool) -> Pair:
    a, b = add.pair(rng, held_out)
    item = rng.choice(add.ITEMS)
    first, second = (text.format(a=a, b=b, i=item) for text in _two(rng, add.QUESTIONS))
    return Pair(first, second, f"sum {min(a, b)} {max(a, b)}")


def requested(rng: Random, held_out: bool) -> Pair:
    while True:
        deed = rng.choice(_DEEDS).format(
            n=rng.choice(words.NOUNS), c=rng.choice(words.CITIES), d=rng.choice(words.CITIES),
            f=rng.choice(words.FOODS), g=rng.choice(words.FOODS), a=rng.choice(words.ADJECTIVES),
            m=rng.choice(words.NAMES), s=rng.choice(words.SPORTS), v=rng.choice(words.COLOURS),
        )  # fmt: skip
        if is_held_out("request", deed) == held_out:
            first, second = (text.format(w=deed) for text in _two(rng, _WISHES))
            return Pair(first, second, f"request {deed}")


SORTS: dict[str, Callable[[Random, bool], Pair]] = {
    "facts told": told,
    "facts asked for": asked,
    "sums": summed,
    "requests": requested,
}


def _spelled(rng: Random, text: str) -> str:
    if rng.random() < 0.3:
        text = text.replace("avourite", "avorite").replace("olour", "olor")
    return text.rstrip(".?!") if rng.random() < 0.2 else text


def training_pair(rng: Random) -> Pair:
    first, second, meaning = rng.choice(tuple(SORTS.values()))(rng, False)
    return Pair(_spelled(rng, first), _spelled(rng, second), meaning)


def held_out(sort: str, n: int, seed: int = 0) -> list[Pair]:
    """`n` pairs of different meaning, always the same for equal arguments. Raises KeyError for an unknown sort."""
    draw = SORTS[sort]
    rng = Random(f"{sort} {seed}")
    found: dict[str, Pair] = {}
    while len(found) < n:
        pair = draw(rng, True)
        found.setdefault(pair.meaning, pair)
    return list(found.values())
