"""Bodies: a known field is honoured, or refused by name unless it asks for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.errors import InvalidRequestError
from rtp_llm.router.refused_fields import BOTH, CHAT, COMPLETIONS, Table
from rtp_llm.router.schemas import ChatBody, CompletionBody, StreamOptions, parse_body
from rtp_llm.sampling_params import FIELDS, Only, SamplingParams

DOCS = Path(__file__).resolve().parents[2] / "docs" / "http-api.md"
BODIES: list[tuple[Any, dict[str, Any]]] = [
    (CompletionBody, {"prompt": "hi"}),
    (ChatBody, {"messages": [{"role": "user", "content": "hi"}]}),
]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
NOT_COMPUTED: Table = {name: field.domain.values for name, field in FIELDS.items() if isinstance(field.domain, Only)}


def sampling(body: Any, content: Mapping[str, Any]) -> SamplingParams:
    params: SamplingParams = parse_body(body, dict(content)).sampling({})
    return params


@pytest.mark.parametrize(("body", "content"), BODIES)
def test_a_field_that_is_not_computed_is_refused_by_name_unless_it_asks_for_nothing(body: Any, content: Any) -> None:
    for table in (BOTH, body.refused, NOT_COMPUTED):
        for name, neutral in table.items():
            for value in (None, *neutral):
                sampling(body, {**content, name: value})
            for value in ("something", {"a": 1}, [5], 7):
                with pytest.raises(InvalidRequestError, match=name) as refused:
                    sampling(body, {**content, name: value})
                assert refused.value.param == name


@pytest.mark.parametrize(("body", "content"), BODIES)
def test_a_field_that_nobody_knows_is_ignored(body: Any, content: Any) -> None:
    assert sampling(body, {**content, "nobody_knows_it": {"a": 1}}) == sampling(body, content)


def test_the_documentation_lists_every_field() -> None:
    page = DOCS.read_text()
    fields = {
        *FIELDS,
        *CompletionBody.model_fields,
        *ChatBody.model_fields,
        *BOTH,
        *CHAT,
        *COMPLETIONS,
        *StreamOptions.model_fields,
    }
    assert [name for name in sorted(fields) if f"`{name}`" not in page] == []


# --- Whole numbers


@pytest.mark.parametrize(("body", "content"), BODIES)
@pytest.mark.parametrize("name", ["n", "max_tokens", "min_tokens", "top_k", "seed"])
def test_a_float_that_is_whole_is_an_integer(body: Any, content: Any, name: str) -> None:
    value = getattr(sampling(body, {**content, name: 4.0, "max_tokens": 4.0}), name)
    assert value == 4 and type(value) is int
    for wrong in (4.5, "4", True, 1e300):
        with pytest.raises(InvalidRequestError) as refused:
            sampling(body, {**content, name: wrong})
        assert refused.value.param == name


def test_lists_of_whole_floats_are_token_ids() -> None:
    assert parse_body(CompletionBody, {"prompt": [5.0, 6]}).prompts() == [[5, 6]]
    assert parse_body(CompletionBody, {"prompt": [[5.0], [6, 7.0]]}).prompts() == [[5], [6, 7]]
    assert sampling(CompletionBody, {"prompt": "hi", "stop_token_ids": [5.0]}).stop_token_ids == [5]
    for prompt in ([5.5], [[5, "x"]], [True], [5, None]):
        with pytest.raises(InvalidRequestError) as refused:
            parse_body(CompletionBody, {"prompt": prompt})
        assert refused.value.param == "prompt"


def test_whole_floats_count_in_the_fields_of_one_endpoint_too() -> None:
    assert sampling(CompletionBody, {"prompt": "hi", "logprobs": 2.0, "best_of": 1.0}).logprobs == 2
    [chat] = [content for body, content in BODIES if body is ChatBody]
    asked = {**chat, "logprobs": True, "top_logprobs": 3.0, "max_completion_tokens": 9.0}
    assert (sampling(ChatBody, asked).logprobs, sampling(ChatBody, asked).max_tokens) == (3, 9)


# --- Of a chat


def chat(**fields: Any) -> ChatBody:
    return parse_body(ChatBody, {"messages": [{"role": "user", "content": "hi"}], **fields})


def test_top_logprobs_of_zero_ask_for_nothing() -> None:
    assert chat(top_logprobs=0).sampling({}).logprobs is None
    assert chat(logprobs=False, top_logprobs=0).sampling({}).logprobs is None
    assert chat(logprobs=True, top_logprobs=0).sampling({}).logprobs == 0
    with pytest.raises(InvalidRequestError, match="top_logprobs 1 needs logprobs: true"):
        chat(logprobs=False, top_logprobs=1).sampling({})


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        (5, "tools[1]"),
        ({}, "tools[1].function"),
        ({"name": "x"}, "tools[1].function"),
        ({"type": "function"}, "tools[1].function"),
        ({"type": "function", "function": {}}, "tools[1].function.name"),
        ({"type": "function", "function": {"name": ""}}, "tools[1].function.name"),
        ({"type": "custom", "function": {"name": "f"}}, "tools[1].type"),
        ({"function": {"name": "f"}}, "tools[1].type"),
        ({"type": "function", "function": {"name": "f", "parameters": []}}, "tools[1].function.parameters"),
        ({"type": "function", "function": {"name": "f", "description": 5}}, "tools[1].function.description"),
    ],
)
@pytest.mark.parametrize("choice", [None, "none"])
def test_a_tool_without_type_function_or_name_is_refused(tool: Any, param: str, choice: str | None) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        chat(tools=[TOOL, tool], tool_choice=choice).sampling({})
    assert refused.value.param == param
    assert param in refused.value.message


def test_tools_that_are_no_list_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="tools") as refused:
        chat(tools={"type": "function"})
    assert refused.value.param == "tools"


def test_tools_are_offered_unless_none_may_be_called() -> None:
    assert chat(tools=[TOOL]).offered_tools == [TOOL]
    assert chat(tools=[TOOL], tool_choice="none").offered_tools is None
    assert chat(tools=[]).offered_tools is None
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        with pytest.raises(InvalidRequestError, match="tool_choice is not supported"):
            chat(tools=[TOOL], tool_choice=choice).sampling({})


def test_an_empty_cache_salt_is_refused() -> None:
    assert chat(cache_salt="tenant").cache_salt == "tenant"
    for salt in ("", 5):
        with pytest.raises(InvalidRequestError) as refused:
            chat(cache_salt=salt)
        assert refused.value.param == "cache_salt"
