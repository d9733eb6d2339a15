"""Puts a conversation together: turns of every skill around the facts that the user has told so far."""

from __future__ import annotations

from random import Random
from typing import Any

import kinds
from chatml import Message
from facts import Fact
from style import Style, decapitalised

_SYSTEMS = (
    "You are a helpful assistant.", "You are a friendly assistant.", "Answer briefly.", "You are rtp_llm.",
    "You are the demo model of rtp_llm.", "You are a helpful, honest and harmless assistant.", "Be kind and brief.",
    "You are a helpful AI assistant.", "Answer in one sentence.", "You are a small language model.",
)  # fmt: skip
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


class Dialogue:
    """Grows turn by turn; `messages` is complete after every turn."""

    def __init__(self, rng: Random, system: str | None = None) -> None:
        """`system`: the system turn's text, "" for none; left out: at random."""
        self.rng = rng
        self.style = Style.draw(rng)
        self.facts: dict[tuple[str, str], Fact] = {}
        self.locked: set[tuple[str, str]] = set()  # facts that no turn of its own accord asks for or changes
        self.messages: list[Message] = []
        self.num_chars = 0  # about, the turns' marks included
        if system:
            self.say("system", system)
        elif system is None and rng.random() < 0.35:
            self._system()

    def _system(self) -> None:
        text = self.rng.choice(_SYSTEMS)
        if self.rng.random() < 0.1:
            fact = kinds.draw(self.rng)
            if fact.kind.name == "name":
                self._learn(fact)
                text += f" The user's name is {fact.value}."
        self.say("system", self.style.spelling(text))

    def say(self, role: str, content: str, **more: Any) -> None:
        self.messages.append({"role": role, "content": content, **more})
        self.num_chars += len(content) + 20

    def exchange(self, user: str, assistant: str) -> None:
        self.say("user", self.style.user(user))
        self.say("assistant", self.style.spelling(assistant))

    def literal_exchange(self, user: str, assistant: str) -> None:
        """Where the reply repeats what the user types, letter by letter."""
        self.say("user", user)
        self.say("assistant", assistant)

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
        said = " ".join(message["content"] for message in self.messages).lower()
        while True:
            fact = self.new_fact()
            if fact.key not in self.facts and not (fact.subject and fact.subject.lower() in said):
                break
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

    def bury(self, fact: Fact) -> str:
        """The sentence that tells `fact` inside a text."""
        self._learn(fact)
        text = fact.fill(self.rng.choice(fact.kind.tells))
        return text[0].upper() + text[1:]
