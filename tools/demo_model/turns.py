"""The turns of a dialogue: one exchange of a random skill, with the share that each skill has."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from random import Random

import add
import count
import filler
import greet
import json_fill
import listing
import multiply
import refuse
import repeat
import reverse
import subtract
import tool_catalogue
from dialogue import Dialogue
from facts import Fact
from style import decapitalised

_PREFIXES = ("Hi! ", "Hello, ", "Hey, ", "OK, ", "Well, ", "So, ", "Please: ", "Good morning! ", "Hi, ", "Hello! ")
_STORY_INTROS = (
    "Please read this: ", "Here is a story: ", "Read this text. ", "", "", "Listen: ", "Here is a long text. ",
)  # fmt: skip


def turn(dialogue: Dialogue, max_chars: int) -> None:
    """One exchange; what needs room, such as a story, only within `max_chars`."""
    rng = dialogue.rng
    if max_chars > 600 and rng.random() < 0.2:
        story(dialogue, rng.randint(200, max_chars - 200))
        return
    if max_chars > 600 and rng.random() < 0.2:
        dialogue.literal_exchange(*json_fill.exchange(rng))
        return
    rng.choices(_TURNS, cum_weights=_CUMULATIVE)[0](dialogue)


def closed_turn(dialogue: Dialogue) -> None:
    """An exchange that tells and asks no fact."""
    dialogue.exchange(*dialogue.rng.choice(_CLOSED)(dialogue.rng))


def story(dialogue: Dialogue, max_chars: int, buried: Fact | None = None, ask: Fact | None = None) -> None:
    """A long text with facts between its sentences; the same message may end with a question."""
    rng = dialogue.rng
    sentences = filler.story(rng, max_chars)
    told = [dialogue.new_fact() for _ in range(rng.choice((0, 0, 1, 1, 2, 3)))]
    for fact in [*told, *([buried] if buried else [])]:
        if fact.key not in dialogue.facts:
            sentences.insert(rng.randint(0, len(sentences)), dialogue.bury(fact))
    text = rng.choice(_STORY_INTROS) + " ".join(sentences)
    if ask or (dialogue.askable and rng.random() < 0.5):
        question, answer = dialogue.ask(ask) if ask else dialogue.ask_known()
        dialogue.exchange(f"{text} {question}", answer)
    else:
        dialogue.exchange(text, filler.STORY_REPLY)


def _plain(exchange: Callable[[Random], tuple[str, str]]) -> Callable[[Dialogue], None]:
    return lambda dialogue: dialogue.exchange(*exchange(dialogue.rng))


def _prefixed(exchange: Callable[[Random], tuple[str, str]]) -> Callable[[Dialogue], None]:
    return lambda dialogue: _with_prefix(dialogue, *exchange(dialogue.rng))


def _literal(exchange: Callable[[Random], tuple[str, str]]) -> Callable[[Dialogue], None]:
    return lambda dialogue: dialogue.literal_exchange(*exchange(dialogue.rng))


def _with_prefix(dialogue: Dialogue, user: str, assistant: str) -> None:
    rng = dialogue.rng
    if rng.random() < 0.15:
        prefix = rng.choice(_PREFIXES)
        user = prefix + (decapitalised(user) if prefix.endswith(", ") else user)
    dialogue.exchange(user, assistant)


def _statement(dialogue: Dialogue) -> None:
    _with_prefix(dialogue, *dialogue.statement())


def _known(dialogue: Dialogue) -> None:
    if dialogue.askable:
        _with_prefix(dialogue, *dialogue.ask_known())
    else:
        _statement(dialogue)


def _unknown(dialogue: Dialogue) -> None:
    _with_prefix(dialogue, *dialogue.ask_unknown())


def _pair(dialogue: Dialogue) -> None:
    """Two parts in one message: statement then question, or two questions."""
    rng = dialogue.rng
    if rng.random() < 0.6:
        told, ack = dialogue.statement()
        if rng.random() < 0.3:
            question, answer = _calculation(rng)
            _with_prefix(dialogue, f"{told} {question}", f"{ack} {answer}")
        else:
            question, answer = dialogue.ask_known()
            _with_prefix(dialogue, f"{told} {question}", answer)
        return
    (first, reply), (second, more) = (
        dialogue.ask_known() if dialogue.askable and rng.random() < 0.6 else _calculation(rng) for _ in range(2)
    )
    if rng.random() < 0.5:
        joint = rng.choice((" And ", " and ", ", and "))
        first, second = first if joint == " And " else first.rstrip(".?"), joint + decapitalised(second)
    else:
        second = f" {second}"
    _with_prefix(dialogue, first + second, f"{reply} {more}")


def _calculation(rng: Random) -> tuple[str, str]:
    return rng.choice((add.exchange, add.exchange, subtract.exchange))(rng)


def _out_of_tools(rng: Random) -> tuple[str, str]:
    """What only a tool could do, and none is offered."""
    return tool_catalogue.request(rng, rng.choice(tool_catalogue.INTENTS))[0], refuse.REFUSAL


_SHARES: tuple[tuple[float, Callable[[Dialogue], None]], ...] = (
    (14, _statement), (16, _known), (4, _unknown), (7, _pair),
    (6, _plain(greet.exchange)), (7, _prefixed(add.exchange)), (8, _prefixed(subtract.exchange)),
    (11, _prefixed(multiply.exchange)), (5, _literal(repeat.exchange)), (9, _literal(reverse.exchange)),
    (6, _literal(count.exchange)), (7, _prefixed(listing.exchange)), (2, _plain(filler.remark)), (3, _plain(refuse.exchange)),
    (1, _literal(_out_of_tools)),
)  # fmt: skip
_TURNS = tuple(make for _, make in _SHARES)
_CUMULATIVE = tuple(accumulate(share for share, _ in _SHARES))
_CLOSED = (greet.exchange, add.exchange, subtract.exchange, multiply.exchange, listing.exchange, filler.remark)
