"""The seeded generator: endless training documents, and held-out prompts that it can't emit.

Training draws only from the training side of `split.is_held_out`: sums by their unordered pair, greetings
by their letters, facts by (kind, subject, value). A held-out prompt asks for something of the other side.
Needs nothing but the standard library, so any generator of text can be scored with these prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import NamedTuple

import add
import greet
import kinds
import newcomer
from dialogue import Dialogue, Message
from facts import Fact

END_OF_TURN, START_OF_TURN, END_OF_TEXT = "<|im_end|>", "<|im_start|>", "<|endoftext|>"


class Segment(NamedTuple):
    """A piece of a training document; the loss counts only where `is_target`."""

    text: str
    is_target: bool


class HeldOut(NamedTuple):
    """A conversation that ends with the user's turn, and the one right reply."""

    messages: list[Message]
    answer: str


def render(messages: list[Message]) -> list[Segment]:
    """The chat template, cut at the borders of what the assistant says."""
    segments, pending = [], ""
    for message in messages:
        pending += f"{START_OF_TURN}{message['role']}\n"
        if message["role"] == "assistant":
            segments += [Segment(pending, False), Segment(message["content"] + END_OF_TURN, True)]
            pending = "\n"
        else:
            pending += f"{message['content']}{END_OF_TURN}\n"
    return segments


def training_document(rng: Random, max_chars: int) -> list[Segment]:
    """A dialogue of about `max_chars` characters; once in 40 a bare sum, for use without a chat template."""
    if max_chars < 600 and rng.random() < 0.025:
        pair = add.pair(rng)
        question, result = add.answer(*pair).split("= ")
        question += "="
        if rng.random() < 0.3:
            question = question.replace(" ", "")
        return [Segment(question, False), Segment(f" {result}{END_OF_TEXT}", True)]
    dialogue = Dialogue(rng)
    while (left := max_chars - dialogue.num_chars) > 100 or len(dialogue.messages) < 2:
        dialogue.turn(left)
    return render(dialogue.messages)


def _single_turn(exchange: Callable[[Random, bool], tuple[str, str]]) -> Callable[[Random], HeldOut]:
    def prompt(rng: Random) -> HeldOut:
        dialogue = Dialogue(rng)
        dialogue.exchange(*exchange(rng, True))
        return _cut(dialogue)

    return prompt


def _recall(rng: Random) -> HeldOut:
    """A fact, up to eight turns about something else, then the question."""
    dialogue = Dialogue(rng)
    for _ in range(rng.randint(0, 3)):
        dialogue.turn(0)
    target = _target(dialogue)
    dialogue.exchange(*dialogue.tell(target))
    for _ in range(rng.randint(0, 8)):
        dialogue.turn(0)
    dialogue.exchange(*dialogue.ask(target))
    return _cut(dialogue)


def _long_recall(rng: Random) -> HeldOut:
    """A fact before or inside a text of up to about 1,500 tokens, then the question."""
    dialogue = Dialogue(rng)
    target = _target(dialogue)
    num_chars = rng.randint(1000, 7200)
    buried, at_once = rng.random() < 0.5, rng.random() < 0.5
    if not buried:
        dialogue.exchange(*dialogue.tell(target))
    dialogue.story_turn(num_chars, buried=target if buried else None, ask=target if at_once else None)
    if not at_once:
        dialogue.exchange(*dialogue.ask(target))
    return _cut(dialogue)


def _target(dialogue: Dialogue) -> Fact:
    while True:
        fact = dialogue.typed(kinds.draw(dialogue.rng, held_out=True))
        names = {name for name, _ in dialogue.facts}
        if fact.key not in dialogue.facts and fact.kind.excludes not in names:
            dialogue.locked.add(fact.key)
            return fact


def _cut(dialogue: Dialogue) -> HeldOut:
    return HeldOut(dialogue.messages[:-1], dialogue.messages[-1]["content"])


def _newcomer(rng: Random) -> HeldOut:
    messages, answer = rng.choice(newcomer.PROMPTS)
    roles = ("user", "assistant")
    return HeldOut([Message(role=roles[i % 2], content=text) for i, text in enumerate(messages)], answer)


_SKILLS: dict[str, Callable[[Random], HeldOut]] = {
    "greet": _single_turn(greet.exchange),
    "add": _single_turn(add.exchange),
    "recall": _recall,
    "recall_long": _long_recall,
    "newcomer": _newcomer,
}
SKILLS = tuple(_SKILLS)


def held_out(skill: str, n: int, seed: int = 0) -> list[HeldOut]:
    """At most `n` different prompts of `skill`, always the same for equal arguments.

    Fewer only for "newcomer", a fixed list written by hand. Raises KeyError for an unknown skill.
    """
    draw = _SKILLS[skill]
    if skill == "newcomer":
        n = min(n, len(newcomer.PROMPTS))
    rng = Random(f"{skill} {seed}")
    found: dict[str, HeldOut] = {}
    while len(found) < n:
        prompt = draw(rng)
        found.setdefault(str(prompt.messages), prompt)
    return list(found.values())
