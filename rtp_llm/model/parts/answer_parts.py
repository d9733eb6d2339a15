"""AnswerParts: one answer's text as reasoning, content and tool calls, as it grows."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from rtp_llm.model.answer_text import Delta, ToolCall
from rtp_llm.model.parts import reasoning_forms, tool_forms
from rtp_llm.model.parts.part import CallBegins, Part, Reasoning, Steps, Text
from rtp_llm.model.parts.source import Source


@dataclass(frozen=True, kw_only=True)
class PartsAsked:
    """How the parts of one request's answers are read. None: they are content."""

    reasoning: reasoning_forms.Parser | None = None
    tool_calls: tool_forms.Parser | None = None
    tools: tool_forms.Tools = ()
    parallel: bool = True  # False: the first call is the only one
    shows_reasoning: bool = True
    prompt_end: str = ""  # of the rendered prompt: where an answer's reasoning may have begun
    marks: tuple[int, ...] = ()  # special tokens that parsers read


class AnswerParts:
    """Of one answer. White space next to calls and reasoning goes."""

    def __init__(self, asked: PartsAsked) -> None:
        self._asked = asked
        self._reasoning = asked.reasoning and _Reader(asked.reasoning, asked.prompt_end)
        self._calls = asked.tool_calls and _Reader(asked.tool_calls, asked.tools)
        self._trimmed = _Trimmed()
        self._num_calls = 0
        self._thinks = False  # the last part was reasoning

    def take(self, delta: Delta) -> Delta:
        """`delta` in parts. An answer that calls and ends by itself ends with "tool_calls"."""
        texts: list[str] = []
        reasoning: list[str] = []
        calls: list[ToolCall] = []
        thought = self._thinks
        for part in self._parts(delta.text, ended=delta.finish_reason is not None):
            self._thinks = isinstance(part, Reasoning)
            thought |= self._thinks
            if isinstance(part, Text):
                texts.append(part.text)
            elif isinstance(part, Reasoning):
                reasoning.append(part.text)
            elif isinstance(part, CallBegins):
                self._num_calls += 1
                if self._is_shown():
                    calls.append(ToolCall(self._num_calls - 1, f"call_{uuid.uuid4().hex[:24]}", part.name, ""))
            elif self._is_shown():
                calls.append(ToolCall(self._num_calls - 1, "", "", part.text))
        ends_by_calls = delta.finish_reason == "stop" and self._num_calls and delta.stop_reason is None
        return replace(
            delta,
            text="".join(texts),
            reasoning="".join(reasoning) if self._asked.shows_reasoning else "",
            num_reasoning_tokens=delta.num_tokens if thought else 0,
            tool_calls=joined_calls(calls),
            finish_reason="tool_calls" if ends_by_calls else delta.finish_reason,
        )

    def _is_shown(self) -> bool:
        return self._asked.parallel or self._num_calls == 1

    def _parts(self, text: str, *, ended: bool) -> Iterator[Part]:
        for part in self._reasoning.read(text, ended) if self._reasoning else [Text(text)]:
            if self._calls and isinstance(part, Text):
                for each in self._calls.read(part.text, False):
                    yield from self._trimmed.take(each)
            else:
                yield from self._trimmed.take(part)
        if ended:
            for each in self._calls.read("", True) if self._calls else ():
                yield from self._trimmed.take(each)
            yield from self._trimmed.rest()


class _Reader:
    """A parser at work."""

    def __init__(self, parser: Callable[[Source, Any], Steps[None]], given: Any) -> None:
        self._source = Source()
        self._steps = parser(self._source, given)

    def read(self, text: str, ended: bool) -> Iterator[Part]:
        """The parts that are known with `text`."""
        self._source.text += text
        self._source.ended |= ended
        if not self._source.text and not ended:
            return
        for part in self._steps:
            if part is None:
                return
            yield part


class _Trimmed:
    """Holds white space back until it is known what stands next to it."""

    def __init__(self) -> None:
        self._text = _Held()
        self._reasoning = _Held()
        self._behind_call = False  # and nothing but white space came since

    def take(self, part: Part) -> Iterator[Part]:
        if isinstance(part, Text):
            if text := self._text.push(part.text):
                self._behind_call = False
                yield Text(text)
        elif isinstance(part, Reasoning):
            self._reasoning.drops_beginning = self._text.drops_beginning = True
            if text := self._reasoning.push(part.text):
                yield Reasoning(text)
        else:
            self._behind_call = True
            self._text.space = ""
            yield part

    def rest(self) -> Iterator[Part]:
        """At the answer's end."""
        if self._text.space and not self._behind_call:
            yield Text(self._text.space)


class _Held:
    def __init__(self) -> None:
        self.space = ""  # at the end of what came
        self.drops_beginning = False
        self._begun = False

    def push(self, text: str) -> str:
        """What may go out."""
        text = self.space + text
        if self.drops_beginning and not self._begun:
            text = text.lstrip()
        settled = text.rstrip()
        self.space = text[len(settled) :]
        self._begun |= bool(settled)
        return settled


def joined_calls(calls: list[ToolCall]) -> list[ToolCall]:
    """Pieces of the same call as one."""
    whole: list[ToolCall] = []
    for call in calls:
        if whole and whole[-1].index == call.index:
            whole[-1] = replace(whole[-1], arguments=whole[-1].arguments + call.arguments)
        else:
            whole.append(call)
    return whole
