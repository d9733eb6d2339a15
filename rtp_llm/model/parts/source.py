"""The text of an answer as parsers read it: what has come, and a way to wait for more."""

from __future__ import annotations

import re
from collections.abc import Callable

from rtp_llm.model.parts.part import Part, Steps, Text

_SPACE = re.compile(r"\s*")


class Source:
    """What was read since `begin()` is kept: a form that turns out to be none gives it back as text."""

    def __init__(self) -> None:
        self.text = ""  # has come and is not read
        self.ended = False
        self._read: list[str] = []

    def more(self) -> Steps[bool]:
        """Waits for more text. False: the answer has ended."""
        if self.ended:
            return False
        yield None
        return True

    def begin(self) -> None:
        self._read.clear()

    def taken(self) -> str:
        """What was read since `begin()`, which is then."""
        text = "".join(self._read)
        self._read.clear()
        return text

    def read(self, size: int) -> str:
        text, self.text = self.text[:size], self.text[size:]
        self._read.append(text)
        return text

    def peek(self) -> Steps[str]:
        """The next character; empty at the answer's end."""
        while not self.text:
            if not (yield from self.more()):
                return ""
        return self.text[0]

    def skip_space(self) -> Steps[str]:
        """Reads white space. Returns the character behind it; empty at the answer's end."""
        yield from self.run(_SPACE)
        return self.text[:1]

    def skip(self, *marks: str) -> Steps[str]:
        """Reads the first of `marks` that comes next; empty: none does."""
        while True:
            for mark in marks:
                if self.text.startswith(mark):
                    return self.read(len(mark))
            if not any(mark.startswith(self.text) for mark in marks) or not (yield from self.more()):
                return ""

    def run(self, pattern: re.Pattern[str]) -> Steps[str]:
        """Reads what `pattern`, which any beginning of a match matches too, matches next; perhaps nothing."""
        pieces: list[str] = []
        while True:
            found = pattern.match(self.text)
            size = found.end() if found else 0
            more = size == len(self.text)
            pieces.append(self.read(size))
            if not more or not (yield from self.more()):
                return "".join(pieces)

    def until(self, *marks: str) -> Steps[tuple[str, str]]:
        """(what stands before the first of `marks`, the mark); both are read. The answer ends before one: (the rest, "")."""
        pieces: list[str] = []
        while True:
            piece, mark = yield from self._look(marks)
            pieces.append(piece)
            if mark is not None:
                return "".join(pieces), mark

    def text_until(self, *marks: str, part: Callable[[str], Part] = Text) -> Steps[str]:
        """The same, and what stands before goes out as it comes. Returns the mark, from which on what is read is kept."""
        while True:
            piece, mark = yield from self._look(marks)
            if piece:
                yield part(piece)
            self._read = [mark] if mark else []
            if mark is not None:
                return mark

    def _look(self, marks: tuple[str, ...]) -> Steps[tuple[str, str | None]]:
        """(what is read and stands before marks, the mark behind it; "" at the answer's end, None: there may be more)."""
        found = [(at, mark) for mark in marks if (at := self.text.find(mark)) >= 0]
        if found:
            at, mark = min(found, key=lambda each: (each[0], -len(each[1])))
            return self.read(at), self.read(len(mark))
        settled = len(self.text) - max((_beginning_at_end(self.text, mark) for mark in marks), default=0)
        if settled or (yield from self.more()):
            return self.read(settled), None
        return self.read(len(self.text)), ""


def _beginning_at_end(text: str, mark: str) -> int:
    """Length of the longest beginning of `mark` that ends `text`."""
    longest = min(len(text), len(mark) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(mark[:size])), 0)
