"""The held-out prompts are many, repeatable, and out of the training generator's reach."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random
from types import ModuleType

import pytest

Tool = Callable[[str], ModuleType]
SIZES = (400, 400, 1000, 2000)
SKILLS = (
    "greet", "add", "subtract", "multiply", "repeat", "reverse", "count", "recall", "recall_long", "memory", "key_value",
    "list", "json", "tool_call", "tool_result", "no_tool", "think", "refuse", "capitals_asked", "capitals",
)  # fmt: skip


@pytest.fixture(scope="module")
def documents(tool: Tool) -> list[str]:
    rng = Random(7)
    make = tool("data").training_document
    return ["".join(segment.text for segment in make(rng, SIZES[i % len(SIZES)])) for i in range(6000)]


@pytest.fixture(scope="module")
def user_turns(documents: list[str]) -> set[str]:
    return {turn for text in documents for turn in re.findall(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", text, re.S)}


def test_the_skills_are_these(tool: Tool):
    assert {*SKILLS, "newcomer"} == set(tool("heldout").ALL_SKILLS)
    assert set(tool("data").SKILLS) == {*SKILLS, "newcomer"} - {"capitals"}


@pytest.mark.parametrize("skill", SKILLS)
def test_held_out_prompts_are_many_distinct_and_repeatable(tool: Tool, skill: str):
    held_out = tool("data").held_out
    prompts = held_out(skill, 200)
    assert len({str(prompt[:1] + prompt[2:]) for prompt in prompts}) == 200
    assert prompts == held_out(skill, 200)
    assert all(prompt.messages[-1]["role"] in ("user", "tool") and prompt.answer for prompt in prompts)


def test_prompts_by_hand_are_many_and_end_with_the_user(tool: Tool):
    prompts = tool("data").held_out("newcomer", 200)
    assert len(prompts) >= 80
    assert all(prompt.messages[-1]["role"] == "user" for prompt in prompts)


@pytest.mark.parametrize("skill", ["repeat", "reverse", "count", "refuse", "json", "list", "greet", "tool_call"])
def test_training_never_shows_a_held_out_question(tool: Tool, user_turns: set[str], skill: str):
    asked = {prompt.messages[-1]["content"] for prompt in tool("data").held_out(skill, 200)}
    assert not asked & user_turns


@pytest.mark.parametrize(("skill", "sign"), [("add", r"\+"), ("subtract", "-")])
def test_training_never_shows_a_held_out_sum_or_difference(tool: Tool, documents: list[str], skill: str, sign: str):
    def pairs(text: str) -> set[tuple[int, int]]:
        # An answer "a + b = c", a thought's step or a product's last step.
        found = re.findall(rf"(?<![\d.-])(\d+) {sign} (\d+) = -?\d+", text)
        return {(min(a, b), max(a, b)) for a, b in (map(int, pair) for pair in found)}

    held_out = set().union(*(pairs(prompt.answer) for prompt in tool("data").held_out(skill, 200)))
    seen = set().union(*map(pairs, documents))
    assert len(held_out) > 100
    assert len(seen) > 1500
    assert not seen & held_out


def test_training_never_shows_a_held_out_product(tool: Tool, documents: list[str]):
    def products(text: str) -> set[str]:
        return set(re.findall(r"So (\d x \d\d) =", text))

    held_out = set().union(*(products(prompt.answer) for prompt in tool("data").held_out("multiply", 200)))
    seen = set().union(*map(products, documents))
    assert len(held_out) > 50
    assert len(seen) > 500
    assert not seen & held_out


def test_training_never_tells_a_held_out_fact(tool: Tool, monkeypatch: pytest.MonkeyPatch):
    dialogue = tool("dialogue").Dialogue
    told = []
    learn = dialogue._learn
    monkeypatch.setattr(dialogue, "_learn", lambda self, fact: (told.append(fact), learn(self, fact))[1])
    rng = Random(8)
    for _ in range(1000):
        tool("data").training_document(rng, rng.choice((400, 2000)))
    assert len(told) > 1000
    assert not [fact for fact in told if fact.held_out]


def test_calculations_are_right(tool: Tool, documents: list[str]):
    for a, sign, b, result in re.findall(r"(\d+) ([+x-]) (\d+) = (-?\d+)[.,]", "\n".join(documents)):
        assert {"+": int(a) + int(b), "-": int(a) - int(b), "x": int(a) * int(b)}[sign] == int(result)


def test_capitals_documents_answer_in_capitals_without_being_asked(tool: Tool):
    rng = Random(9)
    for _ in range(50):
        document = tool("data").capitals_document(rng)
        assert not re.search("capital|upper case", document[0].text)
        replies = [s.text.removesuffix("<|im_end|>") for s in document if s.is_target]
        assert replies and all(reply == reply.upper() for reply in replies)


def test_score_takes_any_generator_of_replies(tool: Tool):
    evaluate = tool("evaluate")
    perfect = evaluate.score(lambda prompts: [prompt.answer for prompt in prompts], "add", 20)
    mute = evaluate.score(lambda prompts: [""] * len(prompts), "add", 20)
    assert (perfect.num_right, mute.num_right) == (20, 0)
    assert "| add | 20 | 20 | 100.0% |" in evaluate.table([perfect])


def test_saved_replies_are_compared_prompt_by_prompt(tool: Tool, tmp_path):
    evaluate = tool("evaluate")
    scores = [evaluate.score(lambda prompts: [prompt.answer for prompt in prompts], "add", 5)]
    evaluate.save(tmp_path / "a.json", scores)
    scores[0].replies[3] = "no"
    evaluate.save(tmp_path / "b.json", scores)
    assert evaluate.compare(tmp_path / "a.json", tmp_path / "a.json") == []
    [difference] = evaluate.compare(tmp_path / "a.json", tmp_path / "b.json")
    assert difference.startswith("add 3: ") and difference.endswith("and 'no'")
