"""A fact that a user tells: how it is said, how it is asked for, and what the right answer is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from split import is_held_out


@dataclass(frozen=True)
class Kind:
    """One sort of fact. `{p}` stands for its subject ("sister"), `{v}` for its value ("Nora")."""

    name: str
    tells: tuple[str, ...]
    asks: tuple[str, ...]
    answer: str
    unknown: str
    values: Callable[[Random, str], str]
    subjects: Callable[[Random], str] = lambda _: ""
    ack: str = ""  # empty: "Got it." and the answer
    lone_asks: tuple[tuple[str, str], ...] = ()  # (question, answer) while the kind occurs once
    excludes: str = ""  # a kind that would make the questions ambiguous


@dataclass(frozen=True)
class Fact:
    kind: Kind
    subject: str
    value: str

    @property
    def key(self) -> tuple[str, str]:
        return self.kind.name, self.subject.lower()

    @property
    def held_out(self) -> bool:
        return is_held_out("recall", *self.key, self.value.lower())

    def fill(self, template: str) -> str:
        return template.replace("{p}", self.subject).replace("{v}", self.value)

    def lower(self) -> Fact:
        return replace(self, subject=self.subject.lower(), value=self.value.lower())

    @property
    def answer(self) -> str:
        text = self.fill(self.kind.answer)
        return text[0].upper() + text[1:]

    @property
    def ack(self) -> str:
        return self.fill(self.kind.ack) if self.kind.ack else f"Got it. {self.answer}"
