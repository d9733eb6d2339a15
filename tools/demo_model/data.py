"""The seeded generator: endless training documents, and held-out prompts that it can't emit.

Training draws only from the training side of `split.is_held_out`: sums by their unordered pair, greetings by their
letters, facts by (kind, subject, value), and so on. A held-out prompt asks for something of the other side.
Needs nothing but the standard library, so any generator of text can be scored with these prompts.
"""

from __future__ import annotations

from random import Random

import add
import capitals
import key_value
import thought
import turns
from chatml import END_OF_TEXT, END_OF_TURN, START_OF_TURN, Message, Segment, prompt_text, segments
from dialogue import Dialogue
from heldout import SKILLS, HeldOut, held_out
from tool_use import MAX_TOOLS, ToolDialogue

__all__ = [
    "END_OF_TEXT", "END_OF_TURN", "SKILLS", "START_OF_TURN", "HeldOut", "Message", "Segment", "capitals_document",
    "held_out", "prompt_text", "training_document",
]  # fmt: skip

CHARS_PER_LINE = 63  # of a table
TABLE_MIN_CHARS, TOOLS_MIN_CHARS = 600, 1100


def training_document(rng: Random, max_chars: int) -> list[Segment]:
    """About `max_chars` characters: a dialogue of all skills, or one of the forms that need a document of their own."""
    roll = rng.random()
    if max_chars > TABLE_MIN_CHARS and roll < (0.5 if max_chars > 3500 else 0.12):
        return _table_document(rng, max_chars)
    if max_chars > TOOLS_MIN_CHARS and roll < 0.7:
        return _tool_document(rng, max_chars)
    if roll > 0.955:
        return capitals_document(rng, max_chars, asked=True)
    if roll > 0.85:
        return _thinking_document(rng, max_chars)
    if max_chars < 600 and roll < 0.02:
        return _bare_sum(rng)
    dialogue = Dialogue(rng)
    _fill(dialogue, max_chars)
    return segments(dialogue.messages)


def capitals_document(rng: Random, max_chars: int = 500, asked: bool = False) -> list[Segment]:
    """A dialogue of closed wording with answers in capitals; `asked`: the system turn or each question asks for that."""
    by_system = asked and rng.random() < 0.6
    dialogue = Dialogue(rng, rng.choice(capitals.SYSTEMS) if by_system else "")
    while not dialogue.messages or max_chars - dialogue.num_chars > 100:
        question, answer = capitals.exchange(rng)
        if asked and not by_system:
            if rng.random() < 0.4:
                turns.closed_turn(dialogue)
                continue
            question = rng.choice(capitals.REQUESTS).replace("{q}", question)
        dialogue.exchange(question, answer)
    return segments(dialogue.messages)


def _fill(dialogue: Dialogue, max_chars: int) -> None:
    while (left := max_chars - dialogue.num_chars) > 100 or len(dialogue.messages) < 2:
        turns.turn(dialogue, left)


def _bare_sum(rng: Random) -> list[Segment]:
    """For use without a chat template."""
    question, result = add.answer(*add.pair(rng)).split("= ")
    question += "="
    if rng.random() < 0.3:
        question = question.replace(" ", "")
    return [Segment(question, False), Segment(f" {result}{END_OF_TEXT}", True)]


def _table_document(rng: Random, max_chars: int) -> list[Segment]:
    """A table somewhere in a dialogue, then many questions about it."""
    dialogue = Dialogue(rng)
    if rng.random() < 0.25:
        turns.closed_turn(dialogue)
    left = max_chars - dialogue.num_chars
    num_questions = rng.randint(3, 15) if left > 2500 else 3
    most = (left - num_questions * 85 - 100) // CHARS_PER_LINE
    most = max(3, min(key_value.MAX_PAIRS, most))
    table = key_value.training_table(rng, most if rng.random() < 0.6 else rng.randint(3, most))
    asked = rng.sample(range(len(table.pairs)), len(table.pairs))
    text = table.text
    if rng.random() < 0.5:
        index = asked.pop()
        dialogue.literal_exchange(_ask(rng, table, index, f"{text} "), table.answer(index))
    else:
        dialogue.literal_exchange(text, key_value.ACK)
    while asked and max_chars - dialogue.num_chars > 90:
        index = asked.pop()
        dialogue.literal_exchange(_ask(rng, table, index), table.answer(index))
    return segments(dialogue.messages)


def _ask(rng: Random, table: key_value.Table, index: int, before: str = "") -> str:
    return before + key_value.question(rng).format(key=table.pairs[index][0])


def _tool_document(rng: Random, max_chars: int) -> list[Segment]:
    """Tools offered from the start; calls, results and plain turns."""
    fitting = min(MAX_TOOLS, (max_chars - 500) // 230)
    document = ToolDialogue(rng, rng.randint(1, max(1, fitting)))
    while max_chars - document.dialogue.num_chars > 200 or not document.dialogue.messages[-1:]:
        if rng.random() < 0.45:
            document.plain()
            continue
        document.call()
        if rng.random() < 0.6:
            document.result()
    if len(document.dialogue.messages) < 2:
        document.call()
    return segments(document.dialogue.messages, document.schemas)


def _thinking_document(rng: Random, max_chars: int) -> list[Segment]:
    """Its last turn is thought about: asked for, or by the template's variable; or the variable forbids it."""
    question, thinking, answer = thought.exchange(rng)
    roll = rng.random()
    system = rng.choice(thought.SYSTEMS) if roll < 0.25 else None
    dialogue = Dialogue(rng, system)
    while system is None and max_chars - dialogue.num_chars > 500:
        turns.turn(dialogue, 0)
    enable_thinking = None
    if roll >= 0.75:
        enable_thinking = roll < 0.88
    elif system is None:
        question = rng.choice(thought.REQUESTS).replace("{q}", question)
    reply = answer if enable_thinking is False else thought.reply(thinking, answer)
    dialogue.literal_exchange(question, reply)
    return segments(dialogue.messages, enable_thinking=enable_thinking)
