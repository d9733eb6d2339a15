"""The held-out prompts of every skill."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import add
import capitals
import count
import greet
import json_fill
import key_value
import kinds
import listing
import multiply
import newcomer
import refuse
import repeat
import reverse
import subtract
import thought
import turns
from chatml import THINK, Message
from dialogue import Dialogue
from facts import Fact
from tool_use import MAX_TOOLS, ToolDialogue

Exchange = Callable[[Random, bool], tuple[str, str]]
Tools = list[dict[str, Any]] | None  # OpenAI's function format


class HeldOut(NamedTuple):
    """A conversation that ends with the user's turn, and the one right reply."""

    messages: list[Message]
    answer: str
    tools: Tools = None
    enable_thinking: bool | None = None  # the template's variable; None: not given


def _single_turn(exchange: Exchange, literal: bool = False) -> Callable[[Random], HeldOut]:
    def prompt(rng: Random) -> HeldOut:
        dialogue = Dialogue(rng)
        say = dialogue.literal_exchange if literal else dialogue.exchange
        say(*exchange(rng, True))
        return _cut(dialogue)

    return prompt


def _recall(rng: Random) -> HeldOut:
    """A fact, up to eight turns about something else, then the question."""
    dialogue = Dialogue(rng)
    for _ in range(rng.randint(0, 3)):
        turns.turn(dialogue, 0)
    target = _target(dialogue)
    dialogue.exchange(*dialogue.tell(target))
    for _ in range(rng.randint(0, 8)):
        turns.turn(dialogue, 0)
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
    turns.story(dialogue, num_chars, buried=target if buried else None, ask=target if at_once else None)
    if not at_once:
        dialogue.exchange(*dialogue.ask(target))
    return _cut(dialogue)


def _memory(rng: Random) -> HeldOut:
    """Four turns or more, facts in three of them, then a question about one."""
    dialogue = Dialogue(rng)
    target = _target(dialogue)
    order = ["fact", "fact", "target"]
    rng.shuffle(order)
    for sort in [*order, "other"]:
        if sort == "other" or rng.random() < 0.3:
            turns.closed_turn(dialogue)
        if sort != "other":
            dialogue.exchange(*dialogue.tell(target if sort == "target" else _new_fact(dialogue)))
    dialogue.exchange(*dialogue.ask(target))
    return _cut(dialogue)


def _new_fact(dialogue: Dialogue) -> Fact:
    while (fact := dialogue.new_fact()).key in dialogue.facts:
        pass
    return fact


def _target(dialogue: Dialogue) -> Fact:
    while True:
        fact = dialogue.typed(kinds.draw(dialogue.rng, held_out=True))
        names = {name for name, _ in dialogue.facts}
        if fact.key not in dialogue.facts and fact.kind.excludes not in names:
            dialogue.locked.add(fact.key)
            return fact


def _key_value(rng: Random) -> HeldOut:
    """Tables of any size, every second as long as they come; a pair of the test side is asked."""
    while True:
        table = key_value.table(rng, key_value.MAX_PAIRS if rng.random() < 0.5 else rng.randint(3, key_value.MAX_PAIRS))
        asked = [i for i, pair in enumerate(table.pairs) if key_value.is_held_out_pair(*pair)]
        index = rng.choice(asked)
        messages = table.ask(index, key_value.question(rng), second_turn=rng.random() < 0.5)
        return HeldOut(messages, table.answer(index))


def _json(rng: Random) -> HeldOut:
    if rng.random() < 0.75:
        return _single_turn(json_fill.exchange, literal=True)(rng)
    schema, sentences = json_fill.series(rng, True)
    sentence, answer = next(sentences)
    system = rng.choice(json_fill.SYSTEMS).replace("{s}", schema)
    return HeldOut([{"role": "system", "content": system}, {"role": "user", "content": sentence}], answer)


def _tool_dialogue(rng: Random) -> ToolDialogue:
    return ToolDialogue(rng, rng.randint(1, MAX_TOOLS))


def _tool_call(rng: Random) -> HeldOut:
    document = _tool_dialogue(rng)
    if rng.random() < 0.3:
        document.plain()
    call = document.call(held_out=True)
    return HeldOut(document.dialogue.messages[:-1], call, document.schemas)


def _tool_result(rng: Random) -> HeldOut:
    document = _tool_dialogue(rng)
    document.call(held_out=True)
    document.result()
    return _cut(document.dialogue)._replace(tools=document.schemas)


def _no_tool(rng: Random) -> HeldOut:
    document = _tool_dialogue(rng)
    document.plain(held_out=True)
    return _cut(document.dialogue)._replace(tools=document.schemas)


def _think(rng: Random) -> HeldOut:
    """Asked by the user, by the system turn, or by the template's variable."""
    question, thinking, answer = thought.exchange(rng, True)
    reply, roll = thought.reply(thinking, answer), rng.random()
    if roll < 0.3:
        dialogue = Dialogue(rng, rng.choice(thought.SYSTEMS))
    else:
        dialogue = Dialogue(rng)
        if roll < 0.8:
            question = rng.choice(thought.REQUESTS).replace("{q}", question)
    if roll < 0.9:
        dialogue.literal_exchange(question, reply if roll < 0.8 else reply.removeprefix(f"{THINK}\n"))
        return _cut(dialogue)._replace(enable_thinking=None if roll < 0.8 else True)
    dialogue.literal_exchange(question, answer)
    return _cut(dialogue)._replace(enable_thinking=False)


def _capitals_asked(rng: Random) -> HeldOut:
    question, answer = capitals.exchange(rng, True)
    if rng.random() < 0.6:
        dialogue = Dialogue(rng, rng.choice(capitals.SYSTEMS))
    else:
        dialogue = Dialogue(rng, "")
        question = rng.choice(capitals.REQUESTS).replace("{q}", question)
    dialogue.exchange(question, answer)
    return _cut(dialogue)


def _capitals(rng: Random) -> HeldOut:
    """Nobody asks for capitals: an adapter's own way."""
    while True:
        dialogue = Dialogue(rng, "")
        dialogue.exchange(*capitals.exchange(rng, True))
        prompt = _cut(dialogue)
        if prompt.answer != prompt.answer.lower():  # a bare sum has no letters
            return prompt


def _newcomer(texts: tuple[str, ...], answer: str, tools: Tools = None, enable_thinking: bool | None = None) -> HeldOut:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return HeldOut(messages, answer, tools, enable_thinking)


def _cut(dialogue: Dialogue) -> HeldOut:
    return HeldOut(dialogue.messages[:-1], dialogue.messages[-1]["content"])


_SKILLS: dict[str, Callable[[Random], HeldOut]] = {
    "greet": _single_turn(greet.exchange),
    "add": _single_turn(add.exchange),
    "subtract": _single_turn(subtract.exchange),
    "multiply": _single_turn(multiply.exchange),
    "repeat": _single_turn(repeat.exchange, literal=True),
    "reverse": _single_turn(reverse.exchange, literal=True),
    "count": _single_turn(count.exchange, literal=True),
    "recall": _recall,
    "recall_long": _long_recall,
    "memory": _memory,
    "key_value": _key_value,
    "list": _single_turn(listing.exchange),
    "json": _json,
    "tool_call": _tool_call,
    "tool_result": _tool_result,
    "no_tool": _no_tool,
    "think": _think,
    "refuse": _single_turn(refuse.exchange),
    "capitals_asked": _capitals_asked,
}
SKILLS = (*_SKILLS, "newcomer")  # of the chat model
_SKILLS["capitals"] = _capitals  # of the adapter
ALL_SKILLS = (*SKILLS, "capitals")


def held_out(skill: str, n: int, seed: int = 0) -> list[HeldOut]:
    """At most `n` different prompts of `skill`, always the same for equal arguments.

    Fewer only for "newcomer", a fixed list written by hand. Raises KeyError for an unknown skill.
    """
    if skill == "newcomer":
        return [_newcomer(*prompt) for prompt in newcomer.PROMPTS[:n]]
    draw = _SKILLS[skill]
    rng = Random(f"{skill} {seed}")
    found: dict[str, HeldOut] = {}
    while len(found) < n:
        prompt = draw(rng)
        found.setdefault(f"{prompt.messages} {prompt.tools} {prompt.enable_thinking}", prompt)
    return list(found.values())
