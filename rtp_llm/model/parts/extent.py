"""Where a value ends that comes in pieces: what stands in brackets, or in quotes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from rtp_llm.model.parts.part import Steps
from rtp_llm.model.parts.source import Source

_OPENING = "([{"


class Extent:
    """How far one value goes, which begins with a bracket or a quote.

    `structure` finds brackets and quotes; `in_string`, by quote, what counts behind it: the quote itself, a backslash, and
    control characters that are to be escaped.
    """

    def __init__(self, structure: re.Pattern[str], in_string: Mapping[str, re.Pattern[str]]) -> None:
        self.over = False
        self._structure = structure
        self._in_string = in_string
        self._depth = 0
        self._quote = ""  # of the string that is open
        self._escaped = False

    def read(self, source: Source) -> str:
        """Reads what has come of it. Returns it with those control characters escaped as in JSON."""
        text, at, start, out = source.text, 0, 0, []
        while not self.over and at < len(text):
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            found = (self._in_string[self._quote] if self._quote else self._structure).search(text, at)
            if found is None:
                at = len(text)
                break
            character, at = found[0], found.end()
            if character < " ":
                out += [text[start : found.start()], json.dumps(character)[1:-1]]
                start = at
            else:
                self._step(character)
        source.read(at)
        return "".join([*out, text[start:at]])

    def rest(self, source: Source) -> Steps[str]:
        """Reads all that is still to come of it, as far as the answer goes."""
        pieces = [self.read(source)]
        while not self.over and (yield from source.more()):
            pieces.append(self.read(source))
        return "".join(pieces)

    def _step(self, character: str) -> None:
        if character == "\\":
            self._escaped = True
        elif self._quote:
            self._quote = ""
        elif character in self._in_string:
            self._quote = character
        else:
            self._depth += 1 if character in _OPENING else -1
        self.over = not (self._depth or self._quote)
