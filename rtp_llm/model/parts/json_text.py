"""JSON that comes in pieces: where a value ends, and calls written as objects."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from rtp_llm.model.parts.part import Arguments, CallBegins, Steps
from rtp_llm.model.parts.source import Source

_OF_STRUCTURE = re.compile(r'["{}\[\]]')
_IN_STRING = re.compile(r'["\\\x00-\x1f]')
_SCALAR = re.compile(r"[^\s,:;{}\[\]\"]*")
ARGUMENTS = ("arguments", "parameters")


class _Extent:
    """How far one object, array or string goes."""

    def __init__(self) -> None:
        self.over = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def push(self, text: str) -> tuple[int, str]:
        """(characters of `text` that belong to it, these with control characters in strings escaped)."""
        at, start, out = 0, 0, []
        while not self.over and at < len(text):
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            found = (_IN_STRING if self._in_string else _OF_STRUCTURE).search(text, at)
            if found is None:
                at = len(text)
                break
            character, at = found[0], found.end()
            if self._in_string and character < " ":
                out += [text[start : found.start()], json.dumps(character)[1:-1]]
                start = at
            else:
                self._step(character)
        out.append(text[start:at])
        return at, "".join(out)

    def _step(self, character: str) -> None:
        if character == "\\":
            self._escaped = True
        elif character == '"':
            self._in_string = not self._in_string
        else:
            self._depth += 1 if character in "{[" else -1
        self.over = not self._depth and not self._in_string and not self._escaped


def value(source: Source) -> Steps[tuple[str, bool]]:
    """(the next value as it is written, whether it is whole). White space before it was read.

    Control characters in strings, which JSON doesn't allow and models write, are escaped.
    """
    pieces: list[str] = []
    whole = yield from _pieces(source, pieces.append)
    return "".join(pieces), whole


def arguments(source: Source) -> Steps[None]:
    """The next value, which begins, as the arguments of the call that has begun."""
    if source.text[0] in "{[":
        extent = _Extent()
        while True:
            size, piece = extent.push(source.text)
            source.read(size)
            if piece:
                yield Arguments(piece)
            if extent.over or not (yield from source.more()):
                return
    text, _ = yield from value(source)
    yield Arguments(written(text))


def written(text: str) -> str:
    """Arguments that are no object: none are {}, and a text that holds JSON is that JSON."""
    given = loaded(text)
    if isinstance(given, str):
        if not given.strip():
            return "{}"
        return given if loaded(given) is not None and is_unicode(given) else text
    return text if given is not None else "{}" if text == "null" else text


def _pieces(source: Source, say: Any) -> Steps[bool]:
    first = yield from source.peek()
    if first in ("{", "[", '"'):
        extent = _Extent()
        while True:
            size, piece = extent.push(source.text)
            source.read(size)
            say(piece)
            if extent.over:
                return True
            if not (yield from source.more()):
                return False
    say((yield from source.run(_SCALAR)))
    return bool(source.text)


def is_unicode(text: str) -> bool:
    """False: it has half of a character, which JSON can write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def loaded(text: str) -> Any:
    """None: it is no JSON, or null."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None


def call(source: Source, offered: Collection[str] | None = None) -> Steps[bool]:
    """An object as a call. False: it is none; nothing was given, and `source.taken()` has it. `offered`: names, one of which an
    object without arguments must have."""
    if (yield from source.skip_space()) != "{":
        return False
    source.read(1)
    name, held, begun = "", None, False
    while True:
        character = yield from source.skip_space()
        if character == "}":
            source.read(1)
            break
        if character == ",":
            source.read(1)
            continue
        if character != '"':
            return begun
        key, whole = yield from value(source)
        if not whole or (yield from source.skip_space()) != ":":
            return begun
        source.read(1)
        if not (yield from source.skip_space()):
            return begun
        member = loaded(key)
        if member in ARGUMENTS and held is None and not begun and name:
            begun = True
            yield CallBegins(name)
            yield from arguments(source)
            continue
        text, whole = yield from value(source)
        if not text:
            return begun
        if member in ARGUMENTS and held is None:
            held = text
        elif member == "name" and not name:
            name = loaded(text) if whole else ""
            if not isinstance(name, str) or not name or not is_unicode(name):
                return False
            if held is not None:
                begun = True
                yield CallBegins(name)
                yield Arguments(held if held[0] in "{[" else written(held))
    if not name or not (begun or offered is None or name in offered):
        return False
    if not begun:
        yield CallBegins(name)
        yield Arguments("{}")
    return True
