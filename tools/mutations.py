"""Mutants of a C++ source file: what tools/mutate.py builds and tests.

Sources are as clang-format leaves them: a binary operator stands between spaces, a template's bracket does not.
"""

import random
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

NOT_CODE = re.compile(
    r"""//[^\n]* | /\*.*?\*/ | R"(\w*)\(.*?\)\1" | "(?:\\.|[^"\\\n])*" | (?<![0-9a-fA-F])'(?:\\.|[^'\\\n])+'
    | ^[ \t]*\#(?:[^\n]*\\\n)*[^\n]*""",
    re.S | re.M | re.X,
)
# Calls whose arguments are a message from the first string on, and statements without effect on behaviour.
MESSAGE = re.compile(r"\b(?:check|require|concat|warn|fail|\w*Error|InvalidArgument|Unavailable)\(")
EFFECTLESS = re.compile(r"^[^\n;]*(?:\breserve|static_assert|pthread_setname_np)\(.*?;", re.S | re.M)

SWAPS = {
    "<": ("<=", ">="),
    "<=": ("<", ">"),
    ">": (">=", "<="),
    ">=": (">", "<"),
    "==": ("!=",),
    "!=": ("==",),
    "&&": ("||",),
    "||": ("&&",),
    "+": ("-",),
    "-": ("+",),
    "*": ("/",),
    "/": ("*",),
    "%": ("/",),
    "&": ("|",),
    "|": ("&",),
    "<<": (">>",),
    ">>": ("<<",),
    "+=": ("-=",),
    "-=": ("+=",),
}
OPERATOR = re.compile(r"(?<= )(?:" + "|".join(sorted(map(re.escape, SWAPS), key=len, reverse=True)) + r")(?=\s)")
WORDS = {"true": "false", "false": "true", "min": "max", "max": "min", "continue": "break", "any_of": "all_of"}
WORD = re.compile(r"\b(?:true|false|continue|(?<=std::)(?:min|max)(?=[(<])|(?<=::)any_of)\b")
STEP = re.compile(r"(?<![\w)\]])(?:\+\+|--)(?=[\w(*])")
NOT = re.compile(r"(?<![\w)\]])!(?=[\w(*])")
NUMBER = re.compile(r"(?<![\w.'])(\d+)((?:\.\d*)?(?:[uUlLfF]|ull|ULL)?)(?![\w.'>])")
ARGUMENTS = re.compile(r"(?<=[\w>]\()([a-z][\w.>\[\]-]*), ([a-z][\w.>\[\]-]*)(?=\))")
TERNARY = re.compile(r"(?:\breturn |(?<![=!<>])= |, |\()([^?;{}=,]+?) \? ")
HEADER = re.compile(r"\b(if|while|for) \(")
BOOL_FUNCTION = re.compile(r"^bool [\w:]+\(.*?^}", re.S | re.M)
RETURN = re.compile(r"\breturn (?!true;|false;)([^;]+);")
# A statement that may be deleted: not a declaration, not the head of another.
KEYWORD = re.compile(
    r"(?:const|auto|static|constexpr|struct|class|enum|using|template|return(?!;)|if|for|while|switch|do|else|case|try"
    r"|default|public|private|protected|friend|explicit|virtual|operator)\b"
)
DECLARATION = re.compile(r"(?!throw\b)[A-Za-z_][\w:]*(?:<[^;=]*>)?[*&]*\s+[*&]*[A-Za-z_]\w*\s*[;=({\[]")
STATEMENT = re.compile(r"(?:[;{}]|\b(?:case [\w:]+|default):|\belse)\s+(?=[A-Za-z_*+(-])")


@dataclass
class Mutant:
    """Whole lines of a file, from line `line` on, and what they become."""

    file: str
    line: int
    before: str
    after: str
    verdict: str = ""  # killed, survived, invalid (does not compile), gone (the lines are no more); empty: not judged
    by: str = ""  # the test that killed it, or the compiler's error


def blank(text: str) -> str:
    """Code alone, at the same offsets: comments and preprocessor lines are spaces, literals and messages quotes."""
    code = NOT_CODE.sub(lambda m: re.sub(r"[^\n]", '"' if m[0][0] in "\"'R" else " ", m[0]), text)
    code = EFFECTLESS.sub(lambda m: re.sub(r"[^\n;]", " ", m[0]), code)
    for call in MESSAGE.finditer(code):
        end = closing(code, call.end() - 1)
        first = code.find('"', call.end(), end)
        if first >= 0:
            code = code[:first] + re.sub(r"[^\n()\[\]{}]", '"', code[first:end]) + code[end:]
    return code


def closing(code: str, start: int, end_at: str = "") -> int:
    """Where the bracket at `start` closes; with `end_at`, the first of it outside of brackets from `start` on; -1: none."""
    depth = 0
    for at in range(start, len(code)):
        if not depth and code[at] in end_at:
            return at
        if code[at] in "([{":
            depth += 1
        elif code[at] in ")]}":
            depth -= 1
            if depth < 0:
                return -1
            if depth == 0 and not end_at:
                return at
    return -1


def edits(code: str) -> Iterator[tuple[int, int, str]]:
    """Each (start, end, replacement) of blanked code."""
    loops: list[tuple[int, int]] = []
    bodies = [m.end() for m in STATEMENT.finditer(code)]

    def in_loop_head(at: int) -> bool:
        return any(start <= at < end for start, end in loops)

    for head in HEADER.finditer(code):
        start, end = head.end(), closing(code, head.end() - 1)
        if head[1] == "for":
            loops.append((start, end))
            bodies.append(end + 1 + len(code[end + 1 :]) - len(code[end + 1 :].lstrip()))
            continue
        start = max(start, code.rfind("; ", start, end) + 2)  # behind an init-statement
        condition = code[start:end]
        if not re.search(r" = |^[\w:]+(?:<.*>)?[*&]* [*&]*\w+ =", condition) and condition not in ("true", "false"):
            yield start, end, f"!({condition})"
            yield start, end, "false"
            if head[1] == "if":
                yield start, end, "true"
    for start in sorted(set(bodies)):
        if in_loop_head(start):
            continue
        end = closing(code, start) + 1 if code[start] == "{" else closing(code, start, ";")
        at_column_0 = code[start - 1] == "\n"
        if end > 0 and not at_column_0 and not KEYWORD.match(code, start) and not DECLARATION.match(code, start):
            yield start, end, "{}" if code[start] == "{" else ""
    for found in OPERATOR.finditer(code):
        yield from ((*found.span(), new) for new in SWAPS[found[0]])
    for found in WORD.finditer(code):
        yield *found.span(), WORDS[found[0]]
    for found in STEP.finditer(code):
        if not in_loop_head(found.start()):
            yield *found.span(), "--" if found[0] == "++" else "++"
    for found in NOT.finditer(code):
        yield *found.span(), ""
    for found in NUMBER.finditer(code):
        yield *found.span(), f"{int(found[1]) + 1}{found[2]}"
        if int(found[1]) > 0:
            yield *found.span(), f"{int(found[1]) - 1}{found[2]}"
    for found in ARGUMENTS.finditer(code):
        if found[1] != found[2] and not re.search(r"\b(?:now|out)\b", found[0]):  # never of one type
            yield *found.span(), f"{found[2]}, {found[1]}"
    for found in TERNARY.finditer(code):
        yield *found.span(1), f"!({found[1]})"
    for found in BOOL_FUNCTION.finditer(code):
        for value in RETURN.finditer(found[0]):
            yield found.start() + value.start(1), found.start() + value.end(1), f"!({value[1]})"


def mutations(file: str, text: str) -> list[Mutant]:
    """All mutants of a source file, in order of place."""
    starts = [0] + [m.end() for m in re.finditer("\n", text)]
    found: dict[tuple[int, str], Mutant] = {}
    for start, end, new in sorted(edits(blank(text))):
        first = bisect_right(starts, start) - 1
        begin, stop = starts[first], text.find("\n", end)
        if re.fullmatch(r'[\s\dxa-fA-FuUlL,{}"]*', text[begin:stop]):
            continue  # a row of a table of constants
        # The replacement was made of blanked code: what it keeps is taken from the text.
        old = text[start:end]
        if new.startswith("!(") and new.endswith(")"):
            new = f"!({old})"
        after = text[begin:start] + new + text[end:stop]
        found.setdefault((first, after), Mutant(file, first + 1, text[begin:stop], after))
    return list(found.values())


def draw(sources: dict[str, str], seed: int, count: int) -> list[Mutant]:
    """`count` mutants of {file: text}: as many from each folder, its lines equally likely, at most one a line."""
    rooms: dict[PurePath, dict[tuple[str, int], list[Mutant]]] = {}
    for file, text in sources.items():
        for mutant in mutations(file, text):
            rooms.setdefault(PurePath(file).parent, {}).setdefault((file, mutant.line), []).append(mutant)
    chance = random.Random(seed)
    drawn: list[Mutant] = []
    for place, lines in enumerate(rooms[room] for room in sorted(rooms)):
        share = (count + len(rooms) - 1 - place) // len(rooms)
        drawn += [chance.choice(lines[at]) for at in chance.sample(sorted(lines), min(share, len(lines)))]
    return sorted(drawn, key=lambda mutant: (mutant.file, mutant.line))  # neighbours share what is rebuilt
