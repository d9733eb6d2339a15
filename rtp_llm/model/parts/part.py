"""What an answer's text is made of."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeAlias, TypeVar


@dataclass(frozen=True, slots=True)
class Text:
    """Of the content, as it is written."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class CallBegins:
    """A call of the function `name`; its arguments follow."""

    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """A piece of the last call's arguments, which are JSON."""

    text: str


Part: TypeAlias = Text | Reasoning | CallBegins | Arguments

Result = TypeVar("Result")
# Of a parser and of the functions that it is made of: the parts that it finds, None where it needs more text, what it returns.
Steps: TypeAlias = Generator[Part | None, None, Result]

Parser = TypeVar("Parser", bound=Callable[..., Steps[None]])


def marked(*marks: str) -> Callable[[Parser], Parser]:
    """What a parser reads, which may be special tokens of the model: they are text for it though others aren't."""

    def mark(parser: Parser) -> Parser:
        parser.marks = marks  # type: ignore[attr-defined]
        return parser

    return mark


def marks_of(parser: Callable[..., Steps[None]] | None) -> tuple[str, ...]:
    marks: tuple[str, ...] = getattr(parser, "marks", ())
    return marks
