"""Stop strings on streaming text: nothing that may become part of one goes out before that is settled."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """One answer's matcher. What is found doesn't depend on how the text was cut: the string that ends first wins, of
    those that end together the longest."""

    def __init__(self, stops: Sequence[str], *, include_in_output: bool = False) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._include = include_in_output
        self._held = ""  # a suffix of the text that begins a stop string
        self.matched: str | None = None  # the stop string that ended the text

    def push(self, text: str) -> str:
        """The text that may go out now. After a match (`matched` is set) nothing more does."""
        if self.matched is not None:
            return ""
        text = self._held + text
        end, stop = self._first_match(text)
        if stop:
            self._held = ""
            self.matched = stop
            return text[: end if self._include else end - len(stop)]
        keep = self._longest_prefix_at_end(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str]:
        """(end, stop) of the match that wins; (0, "") if there is none."""
        matches = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in text]
        if not matches:
            return 0, ""
        end, _, stop = min(matches)
        return end, stop

    def _longest_prefix_at_end(self, text: str) -> int:
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            end = text[len(text) - length :]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
