"""Puts a conversation together: turns of every skill around the facts that the user has told so far."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TypedDict

import add
import filler
import greet
import kinds
from facts import Fact
from words import word_list


class Message(TypedDict):
    role: str
    content: str


_SYSTEMS = (
    "You are a helpful assistant.", "You are a friendly assistant.", "Answer briefly.", "You are rtp_llm.",
    "You are the demo model of rtp_llm.", "You are a helpful, honest and harmless assistant.", "Be kind and brief.",
    "You are a helpful AI assistant.", "Answer in one sentence.", "You are a small language model.",
)  # fmt: skip
_TURN_PREFIXES = ("Hi! ", "Hello, ", "Hey, ", "OK, ", "Well, ", "So, ", "Please: ", "Good morning! ", "Hi, ", "Hello! ")
_TELL_PREFIXES = (
    "Remember that ", "Please remember: ", "By the way, ", "Note that ", "Just so you know: ", "Also, ",
    "Please remember that ", "Remember: ", "You should know that ", "Oh, and ",
)  # fmt: skip
_TELL_SUFFIXES = (
    " Please remember that.",
    " Remember it.",
    " Please keep it in mind.",
    " Don't forget it.",
    " Nice to meet you.",
)
_UPDATES = ("Actually, ", "Sorry, ", "Correction: ", "No, wait, ", "That has changed: ")
_STORY_INTROS = (
    "Please read this: ",
    "Here is a story: ",
    "Read this text. ",
    "",
    "",
    "Listen: ",
    "Here is a long text. ",
)
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


class Dialogue:
    """Grows turn by turn; `messages` is complete after every turn."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.style = Style.draw(rng)
        self.facts: dict[tuple[str, str], Fact] = {}
        self.locked: set[tuple[str, str]] = set()  # facts that no turn of its own accord asks for or changes
        self.messages: list[Message] = []
        if rng.random() < 0.35:
            self._system()

    def _system(self) -> None:
        text = self.rng.choice(_SYSTEMS)
        if self.rng.random() < 0.1:
            fact = kinds.draw(self.rng)
            if fact.kind.name == "name":
                self._learn(fact)
                text += f" The user's name is {fact.value}."
        self.messages.append(Message(role="system", content=self.style.spelling(text)))

    @property
    def num_chars(self) -> int:
        return sum(len(message["content"]) + 20 for message in self.messages)

    def exchange(self, user: str, assistant: str) -> None:
        self.messages.append(Message(role="user", content=self.style.user(user)))
        self.messages.append(Message(role="assistant", content=self.style.spelling(assistant)))

    # Parts: a user's sentence and the reply to it.

    def new_fact(self) -> Fact:
        """A fact of the training side whose questions stay unambiguous; it may replace an unlocked one."""
        while True:
            fact = self.typed(kinds.draw(self.rng))
            known = {name for name, _ in (*self.facts, *self.locked)}
            if fact.kind.excludes in known or fact.key in self.locked:
                continue
            if fact.key not in self.facts or self.rng.random() < 0.3:
                return fact

    def typed(self, fact: Fact) -> Fact:
        return fact.lower() if self.style.lower else fact

    def _learn(self, fact: Fact) -> None:
        self.facts[fact.key] = fact

    def tell(self, fact: Fact) -> tuple[str, str]:
        text = fact.fill(self.rng.choice(fact.kind.tells))
        if fact.key in self.facts:
            text = self.rng.choice(_UPDATES) + decapitalised(text)
        elif self.rng.random() < 0.15:
            text = self.rng.choice(_TELL_PREFIXES) + decapitalised(text)
        elif self.rng.random() < 0.1:
            text += self.rng.choice(_TELL_SUFFIXES)
        else:
            text = text[0].upper() + text[1:]
        self._learn(fact)
        return text, fact.ack

    def ask(self, fact: Fact) -> tuple[str, str]:
        alone = sum(name == fact.kind.name for name, _ in self.facts) == 1
        if fact.kind.lone_asks and alone and self.rng.random() < 0.5:
            question, answer = self.rng.choice(fact.kind.lone_asks)
            return fact.fill(question), fact.fill(answer)
        return fact.fill(self.rng.choice(fact.kind.asks)), fact.answer

    @property
    def askable(self) -> list[Fact]:
        """What was told and isn't kept for the end."""
        return [fact for key, fact in self.facts.items() if key not in self.locked]

    def ask_known(self) -> tuple[str, str]:
        return self.ask(self.rng.choice(self.askable))

    def ask_unknown(self) -> tuple[str, str]:
        fact = self.new_fact()
        while fact.key in self.facts:
            fact = self.new_fact()
        return fact.fill(self.rng.choice(fact.kind.asks)), fact.fill(fact.kind.unknown)

    def statement(self) -> tuple[str, str]:
        """One fact, or two or three in a row."""
        text, reply = self.tell(self.new_fact())
        for _ in range(self.rng.choice((0, 0, 0, 0, 0, 0, 0, 1, 1, 2))):
            fact = self.new_fact()
            if fact.key not in self.facts:
                more = fact.fill(self.rng.choice(fact.kind.tells))
                self._learn(fact)
                joint = self.rng.choice((" and ", ", and ", ", ", ". ", ". "))
                text = text.rstrip(".") + joint + (more if joint == ". " else decapitalised(more))
                reply = f"{reply} {fact.answer}"
        return text, reply

    # Turns.

    def turn(self, max_chars: int) -> None:
        """One exchange of a random kind; a story uses up to `max_chars`."""
        roll = self.rng.random()
        if max_chars > 600 and self.rng.random() < 0.2:
            self.story_turn(self.rng.randint(200, max_chars - 200))
        elif roll < 0.24:
            self._with_prefix(*add.exchange(self.rng))
        elif roll < 0.48:
            self._with_prefix(*self.statement())
        elif roll < 0.74 and self.askable:
            self._with_prefix(*self.ask_known())
        elif roll < 0.80:
            self._with_prefix(*self.ask_unknown())
        elif roll < 0.87:
            self._pair_turn()
        elif roll < 0.95:
            self.exchange(*greet.exchange(self.rng))
        elif roll < 0.975:
            self.exchange(*filler.remark(self.rng))
        else:
            self.exchange(*filler.request(self.rng))

    def _with_prefix(self, user: str, assistant: str) -> None:
        if self.rng.random() < 0.15:
            prefix = self.rng.choice(_TURN_PREFIXES)
            user = prefix + (decapitalised(user) if prefix.endswith(", ") else user)
        self.exchange(user, assistant)

    def _pair_turn(self) -> None:
        """Two parts in one message: statement then question, or two questions."""
        if self.rng.random() < 0.6:
            told, ack = self.statement()
            if self.rng.random() < 0.3:
                question, answer = add.exchange(self.rng)
                self._with_prefix(f"{told} {question}", f"{ack} {answer}")
            else:
                question, answer = self.ask_known()
                self._with_prefix(f"{told} {question}", answer)
            return
        parts = [
            self.ask_known() if self.askable and self.rng.random() < 0.6 else add.exchange(self.rng) for _ in range(2)
        ]
        (first, reply), (second, more) = parts
        if self.rng.random() < 0.5:
            joint = self.rng.choice((" And ", " and ", ", and "))
            first, second = first if joint == " And " else first.rstrip(".?"), joint + decapitalised(second)
        else:
            second = f" {second}"
        self._with_prefix(first + second, f"{reply} {more}")

    def story_turn(self, max_chars: int, buried: Fact | None = None, ask: Fact | None = None) -> None:
        """A long text with facts between its sentences; the same message may end with a question."""
        sentences = filler.story(self.rng, max_chars)
        told = [self.new_fact() for _ in range(self.rng.choice((0, 0, 1, 1, 2, 3)))]
        for fact in [*told, *([buried] if buried else [])]:
            if fact.key not in self.facts:
                text = fact.fill(self.rng.choice(fact.kind.tells))
                sentences.insert(self.rng.randint(0, len(sentences)), text[0].upper() + text[1:])
                self._learn(fact)
        text = self.rng.choice(_STORY_INTROS) + " ".join(sentences)
        if ask or (self.askable and self.rng.random() < 0.5):
            question, answer = self.ask(ask) if ask else self.ask_known()
            self.exchange(f"{text} {question}", answer)
        else:
            self.exchange(text, filler.STORY_REPLY)
