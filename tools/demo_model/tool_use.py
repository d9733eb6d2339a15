"""Skill: call a tool where one fits, answer plainly where none does, and pass a tool's result on."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import add
import filler
import greet
import listing
import refuse
import subtract
import tool_catalogue
import words
from chatml import tool_call_text
from dialogue import Dialogue

MAX_TOOLS = 4


class ToolDialogue:
    """A dialogue in which tools are offered."""

    def __init__(self, rng: Random, num_tools: int, system: str | None = None) -> None:
        self.dialogue = Dialogue(rng, system)
        self.tools = tool_catalogue.draw_tools(rng, num_tools)
        self.schemas = [tool.schema() for tool in self.tools]
        self.dialogue.num_chars += sum(len(json.dumps(schema)) for schema in self.schemas) + 70

    def call(self, held_out: bool = False) -> str:
        """A request that a tool fits, and the call; returns the call's text."""
        dialogue, rng = self.dialogue, self.dialogue.rng
        tool = rng.choice(self.tools)
        text, values = tool_catalogue.request(rng, tool.intent, held_out)
        function = {"name": tool.name, "arguments": dict(zip(tool.parameters, values, strict=True))}
        dialogue.say("user", text)
        dialogue.say("assistant", "", tool_calls=[{"type": "function", "function": function}])
        dialogue.num_chars += 60
        return tool_call_text(**function)

    def result(self, held_out: bool = False) -> None:
        """What the called tool returns, and the sentence that quotes it."""
        content = _result(self.dialogue.rng)
        self.dialogue.say("tool", content)
        self.dialogue.say("assistant", result_sentence(content))

    def plain(self, held_out: bool = False) -> None:
        """A request that no offered tool fits."""
        dialogue, rng = self.dialogue, self.dialogue.rng
        roll = rng.random()
        if roll < 0.3:
            others = [i for i in tool_catalogue.INTENTS if i not in [tool.intent for tool in self.tools]]
            text, _ = tool_catalogue.request(rng, rng.choice(others), held_out)
            dialogue.literal_exchange(text, refuse.REFUSAL)
        elif roll < 0.45:
            dialogue.exchange(*_out_of_reach(rng, held_out))
        elif roll < 0.6 and not held_out:
            dialogue.exchange(*rng.choice((dialogue.statement, dialogue.ask_unknown, dialogue.statement))())
        else:
            dialogue.exchange(*rng.choice(_PLAIN)(rng, held_out))


def result_sentence(content: str) -> str:
    return f"The result is: {content.rstrip('.')}."


def _result(rng: Random) -> str:
    """A short text or a JSON object."""
    number, colour, noun = rng.randint(0, 99), rng.choice(words.ADJECTIVES), rng.choice(words.NOUNS)
    roll = rng.random()
    if roll < 0.45:
        key = rng.choice(("temperature", "time", "status", "price", "result", "answer", "value", "text", "number"))
        value: Any = rng.choice((number, colour, f"{colour} {noun}", True, rng.choice(words.CITIES)))
        pairs = {key: value}
        if rng.random() < 0.3:
            pairs["ok"] = True
        return json.dumps(pairs)
    return rng.choice((
        f"{number} degrees", f"{number} degrees and {colour}", "done", "ok", f"{rng.randint(0, 23)}:{rng.randint(10, 59)}",
        f"{number} euros", f"{colour}", f"{colour} {noun}", filler.sentence(rng), f"{number} kilometres", "sunny", "rain",
        f"{rng.choice(words.NAMES)} says yes", f"{words.coined(rng)}", "cloudy", f"{number} minutes left", "sent",
    ))  # fmt: skip


def _out_of_reach(rng: Random, held_out: bool) -> tuple[str, str]:
    """A refusal whose request reminds of no tool."""
    while True:
        text, reply = refuse.exchange(rng, held_out)
        if not tool_catalogue.HINTS & set(text.lower().replace("?", "").replace(".", "").replace(":", "").split()):
            return text, reply


_PLAIN = (greet.exchange, add.exchange, subtract.exchange, listing.exchange)
