"""Calls as a list in Python's writing: [f(x=1), g(y="a")]."""

from __future__ import annotations

import ast
import json
import re

from rtp_llm.model.parts.extent import Extent
from rtp_llm.model.parts.part import Arguments, CallBegins, Steps, Text, marked
from rtp_llm.model.parts.source import Source
from rtp_llm.model.parts.tool_forms import Tools, array, close
from rtp_llm.sampling_params import is_unicode

_FUNCTION = re.compile(r"[\w.]*\s*")
_OF_STRUCTURE = re.compile(r"""["'(){}\[\]]""")
_IN_STRING = {quote: re.compile(rf"[{quote}\\\\]") for quote in "\"'"}
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
    """False: it is none, or goes wrong; that is given as text."""
    if (yield from source.skip_space()) == "[":
        return (yield from array(source, _one_call))
    yield Text(source.taken())
    return False


def _one_call(source: Source) -> Steps[bool | None]:
    call = _call((yield from _extent_of_call(source)))
    if call is None:
        return None if source.ended and not source.text else False
    yield CallBegins(call[0])
    yield Arguments(call[1])
    return True


def _extent_of_call(source: Source) -> Steps[str]:
    """Reads f(…) up to its closing bracket. Something else is read in part."""
    name = yield from source.run(_FUNCTION)
    if (yield from source.peek()) != "(":
        return ""
    extent = Extent(_OF_STRUCTURE, _IN_STRING)
    brackets = yield from extent.rest(source)
    return name + brackets if extent.over else ""


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
