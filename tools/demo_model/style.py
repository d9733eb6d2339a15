"""How a user types: case, punctuation, spelling."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from words import word_list

_AMERICAN = (("avourite", "avorite"), ("olour", "olor"), ("eighbour", "eighbor"))

_STARTS = frozenset(
    word_list("""
    My The What What's Which Where Where's When Who How How's Do Does Did Can Could Tell Please Call People This
    You We Keep Remember Say Give Add Sum Calculate Compute Solve And If Now So Is Are Hi Hello Hey Good Read Here
    Listen In At After Before On Once From Every Write Why There It That
    """)
)


def decapitalised(text: str) -> str:
    """`text` for the middle of a sentence; names keep their capital."""
    return text[0].lower() + text[1:] if text.split(" ", 1)[0] in _STARTS else text


@dataclass(frozen=True)
class Style:
    """How one user types."""

    lower: bool
    lower_start: bool
    unpunctuated: bool
    american: bool

    @classmethod
    def draw(cls, rng: Random) -> Style:
        case = rng.random()
        return cls(case < 0.2, 0.2 <= case < 0.35, rng.random() < 0.25, rng.random() < 0.4)

    def user(self, text: str) -> str:
        if self.lower:
            text = text.lower()
        elif self.lower_start:
            text = decapitalised(text)
        if self.unpunctuated:
            text = text.rstrip(".?! ") or text
        return self.spelling(text)

    def spelling(self, text: str) -> str:
        if self.american:
            for british, american in _AMERICAN:
                text = text.replace(british, american)
        return text
