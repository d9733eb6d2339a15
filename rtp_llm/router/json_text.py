"""A JSON object as text, read field by field: what is wanted is built, the rest only passed over.

`json.loads` makes objects of 30 times the text's size out of `[{},{},…`. Here a field that nobody wants costs no memory, and
one that is wanted is built only if what it becomes has a bounded size. Depth has a limit, and costs no stack.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Mapping
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, TypeAlias

from rtp_llm.errors import InvalidRequestError

MAX_DEPTH = 200
RUN_CHARS = 64 << 10  # looked at together
RUN_ITEMS = 8  # one by one, where that doesn't work
CLOSERS = str.maketrans("[{", "]}")
BUILT_BYTES = (
    8 << 20
)  # what a field's values may become, however small the body is; a large one's: GROWTH times its text
GROWTH = 8
CONTAINER_BYTES = 250  # of a small dict in a list, about; a list is less
SCALAR_BYTES = 60
INT32 = 2**31

_space = re.compile(r"[ \t\n\r]*").match
_scalars = re.compile(rf'[^\[\]{{}}"]{{0,{RUN_CHARS}}}').match
_string = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]

Build: TypeAlias = (
    "Callable[[JsonText, str, int], tuple[Any, int]]"  # (text, field, where its value begins) → (value, end)
)


class JsonText:
    """One document. Positions are indices into `text`.

    Every method raises json.JSONDecodeError (a ValueError) where the text is no JSON.
    """

    def __init__(self, body: bytes | bytearray) -> None:
        self.text = body.decode(json.detect_encoding(body[:4]), "surrogatepass")

    def fields(self, wanted: Mapping[str, Build]) -> dict[str, Any]:
        """The fields of the object that the text is, of those that are wanted; of equal names the last.

        Raises:
            InvalidRequestError: it is no object, or a field would take too much memory.
        """
        found: dict[str, Any] = {}
        at = self._after_space(0)
        if self.text[at : at + 1] != "{":
            kinds = {"[": "list", '"': "str"}
            kind = kinds.get(self.text[at : at + 1]) or type(self._scalar(at)[0]).__name__
            raise InvalidRequestError(f"the body must be a JSON object, found {kind}")
        at = self._after_space(at + 1)
        if self.text[at : at + 1] != "}":
            while True:
                name, at = self._name(at)
                if build := wanted.get(name):
                    found[name], at = build(self, name, self._after_space(at))
                else:
                    at = self.end_of(at)
                at = self._after_space(at)
                if self.text[at : at + 1] != ",":
                    break
                at = self._after_space(at + 1)
        self._expect("}", at)
        if (at := self._after_space(at + 1)) != len(self.text):
            raise json.JSONDecodeError("Extra data", self.text, at)
        return found

    def value(self, name: str, at: int, max_items: int | None = None) -> tuple[Any, int]:
        """The value at `at`, built, and its end. `max_items`: of a list, itself and none in it.

        Raises:
            InvalidRequestError: it has more items, or would take too much memory.
        """
        end = self.end_of(at, _Size(name, max(BUILT_BYTES, GROWTH * len(self.text)), max_items))
        try:
            return _scan(self.text, at)[0], end
        except RecursionError as error:
            raise json.JSONDecodeError("Nested too deeply", self.text, at) from error

    def end_of(self, at: int, size: _Size | None = None) -> int:
        """Where the value that begins at `at` ends. What it holds is looked at and forgotten."""
        text, closers, patience = self.text, [""], 0
        while True:
            at = self._after_space(at)
            if closers[-1] and patience <= 0:
                try:
                    found = self._items(at, closers[-1])
                except RecursionError as error:  # not to be found again some levels further in
                    raise json.JSONDecodeError("Nested too deeply", text, at) from error
                if found:
                    items, at, left_open = found
                    if size is not None:
                        size.items(items, len(closers) - 1)
                    closers[-1:] = left_open
                    at = self._next(at, closers)
                    if not closers[-1]:
                        return at
                    continue
                patience = RUN_ITEMS
            patience -= 1
            if closers[-1] == "}":
                _, at = self._name(at)
                at = self._after_space(at)
            char = text[at : at + 1]
            if char == "[" or char == "{":
                closer = "]" if char == "[" else "}"
                at = self._after_space(at + 1)
                if size is not None:
                    size.item(CONTAINER_BYTES, len(closers) - 1)
                if text[at : at + 1] != closer:
                    closers.append(closer)
                    if len(closers) > MAX_DEPTH:
                        raise json.JSONDecodeError("Nested too deeply", text, at)
                    continue
                at += 1
            else:
                at = self._scalar(at)[1]
                if size is not None:
                    size.item(SCALAR_BYTES, len(closers) - 1)
            at = self._next(at, closers)
            if not closers[-1]:
                return at

    def _next(self, at: int, closers: list[str]) -> int:
        """Behind an item that ended at `at`: where the next one begins; or, if it was the last of all (closers[-1] is empty),
        where the value ended."""
        while closer := closers[-1]:
            at = self._after_space(at)
            if self.text[at : at + 1] != closer:
                self._expect(",", at)
                return self._after_space(at + 1)
            closers.pop()
            at += 1
        return at

    def _items(self, at: int, closer: str) -> tuple[Any, int, list[str]] | None:
        """Items of an open list or object, from `at` on, by json's own scanner: as a list or object, where they end, and what
        then closes the container and those opened in it. None: the next RUN_CHARS hold no whole one."""
        text, opener = self.text[at : at + RUN_CHARS], "[" if closer == "]" else "{"
        items, end = _scanned(opener + text)
        if items:  # the container ends there
            return items, at + end - 1, []
        cut = text.rfind(",")
        items, end = _scanned(opener + text[:cut] + closer)
        if items and end == cut + 2:
            return items, at + cut, [closer]
        # The last comma lies in a text or in an item: blank the texts, and close what is open before the last comma left.
        blank = _string.sub(lambda found: " " * len(found.group()), text).partition('"')[0]
        cut = blank.rfind(",")
        closers = [closer, *_left_open(blank[: max(cut, 0)]).translate(CLOSERS)]
        items, end = _scanned(opener + text[: max(cut, 0)] + "".join(reversed(closers)))
        return (items, at + cut, closers) if items and end == cut + 1 + len(closers) else None

    def integers(self, at: int) -> tuple[array[int] | None, int]:
        """The list of int32 at `at` as an array, and its end; None: it is no such list."""
        found = array("i")
        at = self._after_space(at + 1)
        if self.text[at : at + 1] == "]":
            return found, at + 1
        while True:
            values, end = self._run(at)
            if {*map(type, values)} != {int} or min(values) < -INT32 or max(values) >= INT32:
                return None, at
            found.extend(values)
            end = self._after_space(end)
            if self.text[end : end + 1] == "]":
                return found, end + 1
            self._expect(",", end)
            at = self._after_space(end + 1)

    def lists_of_integers(self, at: int, most: int) -> tuple[list[array[int]], int] | None:
        """The list of lists of int32 at `at` and its end; None: it is no such list, or has more than `most`."""
        found: list[array[int]] = []
        at = self._after_space(at + 1)
        while self.text[at : at + 1] == "[" and len(found) < most:
            each, end = self.integers(at)
            if each is None:
                return None
            found.append(each)
            end = self._after_space(end)
            if self.text[end : end + 1] == "]":
                return found, end + 1
            self._expect(",", end)
            at = self._after_space(end + 1)
        return None

    # --- Pieces

    def _run(self, at: int) -> tuple[list[Any], int]:
        """Items of a list, from `at`, that are neither texts nor containers, and where the last of them ends; at least one."""
        run = _scalars(self.text, at).group()  # type: ignore[union-attr]
        if self.text[at + len(run) : at + len(run) + 1] != "]":
            run = run[: max(run.rfind(","), 0)]
        if not run.strip():
            value, end = self._scalar(at)
            return [value], end
        inner = f"[{run}]"
        try:
            values, end = _scan(inner, 0)
        except StopIteration as error:
            raise json.JSONDecodeError("Expecting value", self.text, at + error.value - 1) from error
        except json.JSONDecodeError as error:
            raise json.JSONDecodeError(error.msg, self.text, at + error.pos - 1) from error
        if end != len(inner):
            raise json.JSONDecodeError("Expecting ',' delimiter", self.text, at + end - 2)
        return values, at + len(run)

    def _scalar(self, at: int) -> tuple[Any, int]:
        """REQUIRES: no container begins there."""
        try:
            return _scan(self.text, at)  # type: ignore[no-any-return]
        except StopIteration as error:
            raise json.JSONDecodeError("Expecting value", self.text, at) from error

    def _name(self, at: int) -> tuple[str, int]:
        """A field's name, and where its value may begin."""
        if self.text[at : at + 1] != '"':
            raise json.JSONDecodeError("Expecting property name enclosed in double quotes", self.text, at)
        name, at = scanstring(self.text, at + 1, True)
        at = self._after_space(at)
        self._expect(":", at)
        return name, at + 1

    def _after_space(self, at: int) -> int:
        return _space(self.text, at).end()  # type: ignore[union-attr]

    def _expect(self, char: str, at: int) -> None:
        if self.text[at : at + 1] != char:
            raise json.JSONDecodeError(f"Expecting {char!r} delimiter", self.text, at)


def _left_open(text: str) -> str:
    """The brackets of `text` that nothing in it closes, where it has no strings. Each depth costs a look at all of them.

    Raises:
        RecursionError: they are nested too deeply.
    """
    brackets = re.sub(r"[^\[\]{}]", "", text)
    for _ in range(MAX_DEPTH):
        if brackets == (shorter := brackets.replace("[]", "").replace("{}", "")):
            return brackets
        brackets = shorter
    raise RecursionError


def _scanned(text: str) -> tuple[Any, int]:
    """The value at the beginning, and its end; None: it is none.

    Raises:
        RecursionError: it is nested too deeply.
    """
    try:
        return _scan(text, 0)  # type: ignore[no-any-return]
    except (StopIteration, ValueError):
        return None, 0


class _Size:
    """What a value would take, about, as it is passed over: refused as soon as that is too much."""

    def __init__(self, name: str, max_bytes: int, max_items: int | None) -> None:
        self._name = name
        self._max_bytes = max_bytes
        self._max_items = max_items
        self._bytes = 0
        self._items = 0

    def item(self, size: int, depth: int) -> None:
        """One of `size` bytes, in so many containers."""
        self._bytes += size
        self._count(1, depth)

    def items(self, items: Any, depth: int) -> None:
        """Items of a container that lies in so many - 1 others."""
        self._bytes += self._of(items)
        self._count(len(items), depth)

    def _count(self, number: int, depth: int) -> None:
        if depth == 1 and self._max_items is not None:
            self._items += number
            if self._items > self._max_items:
                raise InvalidRequestError(
                    f"{self._name}: there are more than {self._max_items}", param=self._name, value=self._items
                )
        if self._bytes > self._max_bytes:
            raise InvalidRequestError(f"{self._name} holds too many small values for its size", param=self._name)

    @staticmethod
    def _of(value: Any) -> int:
        size, left = 0, [value]
        while left:
            each = left.pop()
            if isinstance(each, dict):
                size += CONTAINER_BYTES
                left += each.values()
            elif isinstance(each, list):
                size += CONTAINER_BYTES
                left += each
            else:
                size += SCALAR_BYTES
        return size
