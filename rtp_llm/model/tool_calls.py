"""Tool calls in an answer's text, as Hermes and Qwen write them: <tool_call>{"name": …, "arguments": {…}}</tool_call>."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from rtp_llm.model.answer_text import Delta, ToolCall
from rtp_llm.sampling_params import is_unicode

OPEN, CLOSE = "<tool_call>", "</tool_call>"
# Other families put other things between the same tags.
_OTHER_FORMS = ("<function=", "<arg_key>")


def is_read(template: str) -> bool:
    """Whether a chat template shows this form to its model: the tags, and a call as an object of name and arguments."""
    shown = all(re.search(rf"""["']{name}\\?["']""", template) for name in ("name", "arguments"))
    return OPEN in template and shown and not any(form in template for form in _OTHER_FORMS)


@dataclass
class _Text:
    """Text that goes on: whether `end` is in it is asked at each piece, and costs what the piece is long."""

    end: str
    pieces: list[str]
    tail: str = ""

    def push(self, piece: str) -> bool:
        """Whether `end` came with this piece."""
        found = self.end in self.tail + piece
        self.pieces.append(piece)
        self.tail = (self.tail + piece)[-(len(self.end) - 1) :]
        return found


class ToolCallParser:
    """Of one answer. Text around the calls stays text, white space next to a call doesn't; what is no valid call is text."""

    def __init__(self, *, parallel: bool = True) -> None:
        """Not `parallel`: the first call is the only one."""
        self._parallel = parallel
        self._held = ""  # outside: white space or the beginning of OPEN, which may turn out to belong to a call
        self._inside: _Text | None = None  # what came behind OPEN
        self._num_calls = 0

    def take(self, delta: Delta) -> Delta:
        """`delta` with its calls taken out of the text. An answer that calls ends with "tool_calls"."""
        texts, calls = [], []
        for item in self._items(delta.text, delta.finish_reason is not None):
            if isinstance(item, str):
                texts.append(item)
            elif self._parallel or not self._num_calls:
                calls.append(replace(item, index=self._num_calls))
                self._num_calls += 1
        ends_by_calls = delta.finish_reason == "stop" and self._num_calls and delta.stop_reason is None
        return replace(
            delta,
            text="".join(texts),
            tool_calls=calls,
            finish_reason="tool_calls" if ends_by_calls else delta.finish_reason,
        )

    def _items(self, text: str, ended: bool) -> Iterable[str | ToolCall]:
        while text:
            if self._inside is None:
                before, text = self._outside(text)
                yield before
            elif self._inside.push(text):
                whole = "".join(self._inside.pieces)
                text = ""
                item, rest = _first_call(whole)
                if item is not None:
                    self._inside, text = None, rest
                    yield item
            else:
                text = ""
        if ended:
            yield self._rest()

    def _outside(self, text: str) -> tuple[str, str]:
        """(text that may go out, text behind OPEN)."""
        text = self._held + text
        before, opened, behind = text.partition(OPEN)
        if opened:
            self._held, self._inside = "", _Text(CLOSE, [])
            return before.rstrip(), behind
        kept = len(text) - _begins_at_end(text)
        settled = text[:kept].rstrip()
        self._held = text[len(settled) :]
        return settled, ""

    def _rest(self) -> str | ToolCall:
        """What was held back, when no more text comes. A call may lack its closing tag."""
        held, self._held = self._held, ""
        if self._inside is None:
            return held if held.strip() or not self._num_calls else ""
        whole, self._inside = "".join(self._inside.pieces), None
        call = _call(whole)
        return call if call is not None else held + OPEN + whole


def _begins_at_end(text: str) -> int:
    """Length of the longest beginning of OPEN that ends `text`."""
    return next((size for size in range(len(OPEN) - 1, 0, -1) if text.endswith(OPEN[:size])), 0)


def _first_call(text: str) -> tuple[str | ToolCall | None, str]:
    """(the call before the first CLOSE that isn't within a string of it, the text behind); a text if it is none; None while
    its string goes on."""
    end = text.find(CLOSE)
    while end >= 0:
        inside, behind = text[:end], text[end + len(CLOSE) :]
        call = _call(inside)
        if call is not None:
            return call, behind
        if not _string_goes_on(inside):
            return OPEN + inside + CLOSE, behind
        end = text.find(CLOSE, end + 1)
    return None, ""


def _call(text: str) -> ToolCall | None:
    try:
        content = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    name = content.get("name") if isinstance(content, dict) else None
    if not isinstance(name, str) or not name:
        return None
    arguments: Any = content.get("arguments", content.get("parameters"))
    if not isinstance(arguments, str):
        arguments = _written({} if arguments is None else arguments)
    if not is_unicode(name + arguments):
        return None
    return ToolCall(0, f"call_{uuid.uuid4().hex[:24]}", name, arguments)


def _written(arguments: Any) -> str:
    """As JSON; half of a character that the model wrote as \\ud83d stays written so."""
    text = json.dumps(arguments, ensure_ascii=False)
    return text if is_unicode(text) else json.dumps(arguments)


def _string_goes_on(text: str) -> bool:
    try:
        json.loads(text, strict=False)
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated string")
    except (ValueError, RecursionError):  # more digits, or deeper, than Python reads
        pass
    return False
