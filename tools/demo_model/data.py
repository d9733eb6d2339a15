"""The seeded generator: endless training documents, and held-out prompts that it can't emit.

Training draws only from the training side of `split.is_held_out`: sums by their unordered pair, greetings by their
letters, facts by (kind, subject, value), and so on. A held-out prompt asks for something of the other side.
Needs nothing but the standard library, so any generator of text can be scored with these prompts.
"""

from __future__ import annotations

from random import Random

import add
import capitals
import json_fill
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


def training_document(rng: Random, max_chars: int) -> list[Segment]:
    """About `max_chars` characters: a dialogue of all skills, or one of the forms that need a document of their own."""
    forms, shares = _FORMS[next(least for least in _FORMS if max_chars >= least)]
    return rng.choices(forms, shares)[0](rng, max_chars)


def _dialogue_document(rng: Random, max_chars: int) -> list[Segment]:
    dialogue = Dialogue(rng)
    while (left := max_chars - dialogue.num_chars) > 100 or len(dialogue.messages) < 2:
        turns.turn(dialogue, left)
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


def _capitals_asked(rng: Random, max_chars: int) -> list[Segment]:
    return capitals_document(rng, max_chars, asked=True)


def _bare_sum(rng: Random, max_chars: int) -> list[Segment]:
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


def _json_document(rng: Random, max_chars: int) -> list[Segment]:
    """A schema in the system turn, then sentences that fill it."""
    schema, sentences = json_fill.series(rng)
    dialogue = Dialogue(rng, rng.choice(json_fill.SYSTEMS).replace("{s}", schema))
    while len(dialogue.messages) < 2 or max_chars - dialogue.num_chars > 170:
        dialogue.literal_exchange(*next(sentences))
    return segments(dialogue.messages)


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


# By the least size in characters: the forms of a document and their shares.
_FORMS = {
    3500: (
        (_dialogue_document, _table_document, _tool_document, _thinking_document, _capitals_asked, _json_document),
        (40, 44, 10, 3, 2, 1),
    ),
    1100: (
        (_dialogue_document, _table_document, _tool_document, _thinking_document, _capitals_asked, _json_document),
        (42, 11, 30, 8, 4, 5),
    ),
    600: (
        (_dialogue_document, _table_document, _thinking_document, _capitals_asked, _json_document),
        (69, 9, 12, 5, 5),
    ),
    0: ((_dialogue_document, _thinking_document, _capitals_asked, _bare_sum), (81, 12, 5, 2)),
}
