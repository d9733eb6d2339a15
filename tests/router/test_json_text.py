"""JSON read field by field: as json.loads, but for what nobody wants, and in bounded memory."""

import json
import random
import sys
import tracemalloc
from array import array
from collections.abc import Collection
from typing import Any

import pytest

from rtp_llm.errors import InvalidRequestError
from rtp_llm.router import json_text
from rtp_llm.router.json_text import RUN_CHARS, JsonText

MIB = 1 << 20
AT_ONCE = 3 * MIB * sys.getsizeof({"a": 1}) // 184  # a dictionary of Python 3.10 takes 232 bytes, not 184


def read(body: bytes, wanted: Collection[str]) -> dict[str, Any]:
    return JsonText(body).fields(dict.fromkeys(wanted, JsonText.value))


def drawn(draw: random.Random, depth: int = 0) -> Any:
    kind = draw.randrange(9 if depth < 4 else 6)
    if kind == 6:
        return {f'{draw.randrange(50)}"': drawn(draw, depth + 1) for _ in range(draw.randrange(4))}
    if kind > 6:
        return [drawn(draw, depth + 1) for _ in range(draw.randrange(5))]
    text = "".join(draw.choice('ab"\\\n\u1234é{}[],:') for _ in range(draw.randrange(6)))
    return [None, draw.random() < 0.5, draw.randrange(-(10**6), 10**12), draw.random() * 1e5, text, text][kind]


@pytest.mark.parametrize("run_chars", [16, json_text.RUN_CHARS])
def test_it_reads_and_refuses_what_json_does(run_chars: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "RUN_CHARS", run_chars)
    monkeypatch.setattr(json_text, "RUN_ITEMS", 3)
    draw = random.Random(1)
    broken = 0
    for _ in range(300):
        whole = {name: drawn(draw) for name in ("a", "b", "c")}
        text = json.dumps(whole, indent=draw.choice([None, 1]), ensure_ascii=draw.random() < 0.5)
        assert read(text.encode(draw.choice(["utf-8", "utf-16"])), "ab") == {"a": whole["a"], "b": whole["b"]}
        at = draw.randrange(1, len(text))
        mutated = text[:at] + draw.choice(["", text[at] * 2, *'[]{},:"1 ']) + text[at + 1 :]
        try:
            expected = json.loads(mutated)
        except ValueError:
            broken += 1
            with pytest.raises(ValueError, match="char"):
                read(mutated.encode(), "abc")
        else:
            assert read(mutated.encode(), "abc") == {n: value for n, value in expected.items() if n in ("a", "b", "c")}
    assert broken > 50


@pytest.mark.parametrize(("body", "kind"), [("[1]", "list"), ("null", "NoneType"), ('"x"', "str"), ("1.5", "float")])
def test_another_value_than_an_object_is_named_by_its_kind(body: str, kind: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"must be a JSON object, found {kind}"):
        read(body.encode(), "a")


def test_depth_is_limited_without_recursion() -> None:
    for opener in ("[", '{"a":'):
        with pytest.raises(json.JSONDecodeError, match="deep"):
            read(b'{"a": ' + opener.encode() * MIB, "")


@pytest.mark.parametrize(("opener", "closer"), [("[", "]"), ('{"a":', "}")])
def test_a_deep_value_that_is_closed_is_looked_at_once(
    opener: str, closer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not once in some levels, nor as often as it is deep."""
    looks = []
    items, left_open = JsonText._items, json_text._left_open

    def look(self: JsonText, at: int, closer: str) -> Any:
        looks.append(at)
        return items(self, at, closer)

    monkeypatch.setattr(JsonText, "_items", look)
    deep = opener * 3000 + "1" + closer * 3000
    body = f'{{"x": [{",".join([deep] * 20)}], "a": "{"x, " * (RUN_CHARS // 2)}"}}'
    with pytest.raises(json.JSONDecodeError, match="deep"):
        read(body.encode(), "a")
    assert len(looks) <= 2
    assert left_open("[1,{[],{},[") == "[{["
    deepest = json_text.MAX_DEPTH - 1
    assert left_open("{" + "[" * deepest + "]" * deepest) == "{"
    with pytest.raises(RecursionError):
        left_open("[" * 300 + "]" * 300)


# What becomes large: many values in few bytes.
SMALL = ["{}", "[]", '""', "1.5", "[[],[[]]]", '{"a":{}}', "null", '{"role":"user","content":"hi"}']


def peak(body: bytes, wanted: Collection[str]) -> int:
    tracemalloc.start()
    try:
        read(body, wanted)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("item", SMALL)
def test_a_field_that_nobody_wants_costs_its_text_and_little_more(item: str) -> None:
    items = ",".join([item] * (MIB // 4 // (len(item) + 1)))
    named = ",".join(f'"{i}":{item}' for i in range(MIB // 4 // (len(item) + 10)))
    for body in (f'{{"x": [{items}], "a": 1}}', f'{{"x": {{{named}}}, "a": 1}}'):
        assert peak(body.encode(), "a") < 6 * len(body) + AT_ONCE


@pytest.mark.parametrize("item", SMALL)
def test_a_field_whose_values_would_take_too_much_is_refused_before_they_do(
    item: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_text, "BUILT_BYTES", 0)
    body = f'{{"x":[{",".join([item] * (MIB // 4 // (len(item) + 1)))}]}}'.encode()
    tracemalloc.start()
    try:
        read(body, "x")
    except InvalidRequestError as error:
        assert error.param == "x" and "too many small values" in error.message  # noqa: PT017
    assert tracemalloc.get_traced_memory()[1] < 6 * len(body) + AT_ONCE
    tracemalloc.stop()


def test_the_items_of_a_list_itself_may_be_limited() -> None:
    text = JsonText(b'{"x": [[1, 2], [3], {"a": [4, 5, 6]}, 7]}')
    at = text.text.index("[")
    assert text.value("x", at, max_items=4)[0] == [[1, 2], [3], {"a": [4, 5, 6]}, 7]
    with pytest.raises(InvalidRequestError, match="x: there are more than 3") as refused:
        text.value("x", at, max_items=3)
    assert refused.value.param == "x"


@pytest.mark.parametrize("run_chars", [8, json_text.RUN_CHARS])
def test_integers_become_an_array(run_chars: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for body in ("[]", "[ 1 , -2,3 ]", "[" + ",".join(map(str, range(500))) + " ]", "[2147483647, -2147483648]"):
        assert JsonText(body.encode()).integers(0) == (array("i", json.loads(body)), len(body))
    for body in ("[1.0]", "[1, true]", '[1, "x"]', "[2147483648]", "[-2147483649]", "[[1]]", "[1, {}]"):
        assert JsonText(body.encode()).integers(0)[0] is None
    for body in ("[1,]", "[1", "[,1]", "[1 2]", "[1,,2]"):
        with pytest.raises(json.JSONDecodeError):
            JsonText(body.encode()).integers(0)
