"""JSON that comes in pieces: where a value ends, and calls written as objects."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from rtp_llm.model.parts.extent import Extent
from rtp_llm.model.parts.part import Arguments, CallBegins, Steps
from rtp_llm.model.parts.source import Source
from rtp_llm.sampling_params import is_unicode

_OF_STRUCTURE = re.compile(r'["{}\[\]]')
_IN_STRING = {'"': re.compile(r'["\\\x00-\x1f]')}
_SCALAR = re.compile(r"[^\s,:;{}\[\]\"]*")
ARGUMENTS = ("arguments", "parameters")


def value(source: Source) -> Steps[tuple[str, bool]]:
    """(the next value as it is written, whether it is whole). White space before it was read.

    Control characters in strings, which JSON doesn't allow and models write, are escaped.
    """
    if (yield from source.peek()) not in ("{", "[", '"'):
        text = yield from source.run(_SCALAR)
        return text, bool(source.text)
    extent = Extent(_OF_STRUCTURE, _IN_STRING)
    text = yield from extent.rest(source)
    return text, extent.over


def arguments(source: Source) -> Steps[None]:
    """The next value, which begins, as the arguments of the call that has begun."""
    if source.text[0] not in "{[":
        text, _ = yield from value(source)
        yield Arguments(written(text))
        return
    extent = Extent(_OF_STRUCTURE, _IN_STRING)
    yield Arguments(extent.read(source))
    while not extent.over and (yield from source.more()):
        if piece := extent.read(source):
            yield Arguments(piece)


def written(text: str) -> str:
    """Arguments that are no object: none are {}, and a text that holds JSON is that JSON."""
    given = loaded(text)
    if isinstance(given, str):
        if not given.strip():
            return "{}"
        return given if loaded(given) is not None and is_unicode(given) else text
    return text if given is not None else "{}" if text == "null" else text


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
