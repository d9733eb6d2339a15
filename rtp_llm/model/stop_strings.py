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

    def push(self, text: str, *, may_end: bool = True) -> str:
        """The text that may go out now. After a match (`matched` is set) nothing more does. A stop string whose end lies in
        `text` doesn't count unless `may_end`."""
        if not self._stops:
            return text
        if self.matched is not None:
            return ""
        settled = len(self._held)
        text = self._held + text
        end, stop = self._first_match(text, settled)
        if stop and may_end:
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

    def _first_match(self, text: str, settled: int) -> tuple[int, str]:
        """(end, stop) of the match that wins, of those that end behind the first `settled` characters; (0, "") if there is
        none."""
        found = [(text.find(stop, max(0, settled + 1 - len(stop))), stop) for stop in self._stops]
        matches = [(start + len(stop), -len(stop), stop) for start, stop in found if start >= 0]
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
