"""Calls as a list in Python's writing: [f(x=1), g(y="a")]."""

from __future__ import annotations

import ast
import json
import re

from rtp_llm.model.parts.json_text import is_unicode
from rtp_llm.model.parts.part import Arguments, CallBegins, Steps, Text, marked
from rtp_llm.model.parts.source import Source
from rtp_llm.model.parts.tool_forms import Tools, close

_FUNCTION = re.compile(r"[\w.]*\s*")
_OF_STRUCTURE = re.compile(r"""["'(){}\[\]]""")
_JSON_NAMES = {"true": True, "false": False, "null": None}


def pythonic(source: Source, tools: Tools) -> Steps[None]:
    yield from _list(source)
    yield from source.text_until()


@marked("<|python_start|>", "<|python_end|>")
def llama4_pythonic(source: Source, tools: Tools) -> Steps[None]:
    """Perhaps between <|python_start|> and <|python_end|>."""
    yield from source.skip_space()
    tagged = yield from source.skip("<|python_start|>")
    if (yield from _list(source)) and tagged:
        yield from close(source, "<|python_end|>")
    yield from source.text_until()


def _list(source: Source) -> Steps[bool]:
    """False: it goes wrong; that is given as text."""
    if (yield from source.skip_space()) == "[":
        source.read(1)
        found = False
        while (character := (yield from source.skip_space())) or not found:
            if character == "]" and found:
                source.read(1)
                return True
            if character == "," and found:
                source.read(1)
                continue
            written = yield from _extent_of_call(source)
            call = _call(written)
            if call is None:
                if found and source.ended and not source.text:
                    return True  # cut
                break
            found = True
            source.begin()
            yield CallBegins(call[0])
            yield Arguments(call[1])
        else:
            return True
    yield Text(source.taken())
    return False


def _extent_of_call(source: Source) -> Steps[str]:
    """Reads f(…) up to its closing bracket. Something else is read in part."""
    pieces = [(yield from source.run(_FUNCTION))]
    if (yield from source.peek()) != "(":
        return ""
    brackets = _Brackets()
    while not brackets.over:
        size = brackets.push(source.text)
        pieces.append(source.read(size))
        if not brackets.over and not (yield from source.more()):
            return ""
    return "".join(pieces)


class _Brackets:
    """How far a bracket goes, in Python's writing."""

    def __init__(self) -> None:
        self.over = False
        self._depth = 0
        self._quote = ""
        self._escaped = False

    def push(self, text: str) -> int:
        """Characters of `text` that belong to it."""
        at = 0
        while not self.over and at < len(text):
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            pattern = re.compile(rf"[{self._quote}\\]") if self._quote else _OF_STRUCTURE
            found = pattern.search(text, at)
            if found is None:
                return len(text)
            at = found.end()
            self._step(found[0])
        return at

    def _step(self, character: str) -> None:
        if character == "\\":
            self._escaped = True
        elif self._quote:
            self._quote = ""
        elif character in "\"'":
            self._quote = character
        else:
            self._depth += 1 if character in "([{" else -1
            self.over = not self._depth


def _call(text: str) -> tuple[str, str] | None:
    """(name, arguments as JSON) of f(x=1); None: it is something else."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(each.arg is None for each in call.keywords):
            return None
        values = {str(each.arg): ast.literal_eval(_JsonNames().visit(each.value)) for each in call.keywords}
        written = json.dumps(values, ensure_ascii=False, allow_nan=False)
        return ast.unparse(call.func), written if is_unicode(written) else json.dumps(values)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None


class _JsonNames(ast.NodeTransformer):
    """JSON's words for Python's."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(_JSON_NAMES[node.id]) if node.id in _JSON_NAMES else node
