"""Bodies of /v1/responses: what they become, what the response repeats, what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.errors import InvalidRequestError
from rtp_llm.router.refused_fields import CHAT, RESPONSES
from rtp_llm.router.response_store import References
from rtp_llm.router.responses_body import ITEMS, TEXT_PARTS, ResponsesBody, _Asked
from rtp_llm.router.schemas import ChatBody, parse_body

USER = {"role": "user", "content": "hi"}
WEATHER = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
CALL = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": '{"a": 1}'}
CHATS_CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "21"}
REASONING = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "so"}]}


def body(input: Any = "hi", recalled: Any = None, **fields: Any) -> ResponsesBody:
    return parse_body(ResponsesBody, {"input": input, **fields}, recalled or {})


def said(text: str, **fields: Any) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}], **fields}


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        ("hi", [USER]),
        ([USER, {**USER, "role": "system"}, {**USER, "role": "developer", "type": "message"}],
         [USER, {**USER, "role": "system"}, {**USER, "role": "developer"}]),
        ([{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]}],
         [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]),
        ([USER, said("yes"), USER], [USER, {"role": "assistant", "content": "yes"}, USER]),
        ([{"role": "assistant", "content": "yes"}, said("no")],
         [{"role": "assistant", "content": "yes"}, {"role": "assistant", "content": "no"}]),
        ([said("", content=[{"type": "refusal", "refusal": "never"}])], [{"role": "assistant", "content": "never"}]),
        ([REASONING, said("look"), CALL, CALL, OUTPUT, OUTPUT],
         [{"role": "assistant", "content": "look", "reasoning_content": "so", "tool_calls": [CHATS_CALL, CHATS_CALL]},
          {"role": "tool", "tool_call_id": "call_1", "content": "21"},
          {"role": "tool", "tool_call_id": "call_1", "content": "21"}]),
        ([CALL, said("done")], [{"role": "assistant", "content": "done", "tool_calls": [CHATS_CALL]}]),
        ([REASONING, REASONING, CALL, REASONING, CALL],
         [{"role": "assistant", "content": [], "reasoning_content": "so\nso", "tool_calls": [CHATS_CALL]},
          {"role": "assistant", "content": [], "reasoning_content": "so", "tool_calls": [CHATS_CALL]}]),
        ([{"type": "reasoning", "summary": [{"type": "summary_text", "text": "short"}], "encrypted_content": "x"}],
         [{"role": "assistant", "content": [], "reasoning_content": "short"}]),
        ([{**OUTPUT, "output": [{"type": "input_text", "text": "21"}]}],
         [{"role": "tool", "tool_call_id": "call_1", "content": "21"}]),
    ],
)  # fmt: skip
def test_items_are_messages_of_a_chat(items: Any, messages: list[dict[str, Any]]) -> None:
    assert body(items).messages == messages


def test_instructions_come_first_then_what_is_kept_then_the_input() -> None:
    kept = {"id": "i", "type": "message", "role": "user", "content": [{"type": "input_text", "text": "1"}]}
    named = {**kept, "id": "j", "content": [{"type": "input_text", "text": "2"}]}
    made = body(
        [{"type": "item_reference", "id": "j"}, USER],
        {"previous_response_id": [kept], "input": [named]},
        instructions="Be kind.",
        previous_response_id="resp_1",
    )
    assert [message["content"] for message in made.messages] == ["Be kind.", "1", "2", "hi"]
    assert made.items[0] == named and len(made.items) == 2


def test_references_are_found_whatever_else_is_there() -> None:
    reference = {"type": "item_reference", "id": "a"}
    assert ResponsesBody.references({"input": [USER, reference, {"id": "b"}, 5, {**USER, "id": "c"}]}) == References(
        "", ("a", "b")
    )
    assert ResponsesBody.references({"input": "a", "previous_response_id": "r"}) == References("r")
    for content in (5, [], {}, {"input": {"id": "a"}}, {"input": [{"type": "item_reference", "id": 5}]}):
        assert ResponsesBody.references(content) == References()


def test_input_items_are_whole_and_keep_their_ids() -> None:
    call = {**CALL, "id": "fc_1", "status": "incomplete"}
    made = body([USER, said("yes", id="msg_1"), REASONING, call, OUTPUT]).items
    assert made[1] == {
        "id": "msg_1",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "yes", "annotations": []}],
    }
    assert made[3] == call and made[0]["content"] == [{"type": "input_text", "text": "hi"}]
    assert [each["id"].partition("_")[0] for each in made] == ["msg", "msg", "rs", "fc", "fco"]


@pytest.mark.parametrize(
    ("items", "begun"),
    [
        ([USER, said("ye", status="incomplete")], True),
        ([USER, said("ye", status="in_progress")], True),
        ([USER, said("yes", status="completed")], None),
        ([USER, said("ye", status="incomplete"), USER], None),
        ([{**USER, "status": "incomplete"}], None),
        ([CALL, said("ye", status="incomplete")], None),
        ([USER, {**REASONING, "status": "incomplete"}], None),
    ],
)
def test_the_answer_goes_on_with_a_last_message_of_the_assistant_that_is_unfinished(items: Any, begun: Any) -> None:
    assert body(items).continue_final_message is begun


def test_fields_are_those_of_a_chat() -> None:
    made = body(
        max_output_tokens=7.0,
        temperature=0.5,
        top_p=0.9,
        top_k=4,
        seed=5,
        stop=["a"],
        include=["message.output_text.logprobs", "reasoning.encrypted_content"],
        top_logprobs=2,
        tools=[WEATHER],
        tool_choice="none",
        parallel_tool_calls=False,
        reasoning={"effort": "low", "summary": "auto"},
        user="me",
        priority=3,
        chat_template_kwargs={"enable_thinking": False},
        return_token_ids=False,
        background=False,
        truncation="disabled",
        text={"format": {"type": "text"}, "verbosity": "medium"},
        nobody_knows_it=5,
    )
    sampling = made.sampling({})
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (7, 0.5, 0.9, 4)
    assert (sampling.seed, sampling.stop, sampling.logprobs) == (5, ["a"], 2)
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    assert made.tools == [{"type": "function", "function": function}] and made.offered_tools is None
    assert (made.parallel_tool_calls, made.reasoning_effort) == (False, "low")
    assert (made.terms().priority, made.terms().session) == (3, "me")
    assert made.chat_template_kwargs == {"enable_thinking": False} and made.store
    assert body(prompt_cache_key="key", user="me").terms().session == "key"
    assert body(include=["message.output_text.logprobs"]).sampling({}).logprobs == 0
    assert body().sampling({}).logprobs is None and not body(store=False).store


def test_the_response_repeats_what_was_asked() -> None:
    made = body(instructions="é", tools=[WEATHER], metadata={"a": "b"}, user="me", temperature=0.5, max_output_tokens=7)
    asked = made.asked_response(made.sampling({"top_p": 0.8}))
    shown = json.loads(asked.shown)
    assert "é".encode() in asked.shown and asked.store and len(asked.input) == 1
    assert shown == {
        "background": False,
        "instructions": "é",
        "max_output_tokens": 7,
        "max_tool_calls": None,
        "metadata": {"a": "b"},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "temperature": 0.5,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [WEATHER],
        "top_logprobs": 0,
        "top_p": 0.8,
        "truncation": "disabled",
        "user": "me",
    }
    unstored = body(store=False)
    assert not unstored.asked_response(unstored.sampling({})).input


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": 5}, "input"),
        ({"input": {"role": "user"}}, "input"),
        ({"input": [USER, 5]}, "input[1]"),
        ({"input": [None]}, "input[0]"),
        ({"input": [{"type": 5}]}, "input[0].type"),
        ({"input": [{"type": ["message"]}]}, "input[0].type"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"type": "item_reference"}]}, "input[0].id"),
        ({"input": [{"type": "item_reference", "id": 5}]}, "input[0].id"),
        ({"input": [{"content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "tool", "content": "a"}]}, "input[0].role"),
        ({"input": [{"role": ["user"], "content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": {}}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": ["a"]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"type": ["a"]}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": 5}]}]}, "input[0].content[0].text"),
        ({"input": [{**USER, "id": 5}]}, "input[0].id"),
        ({"input": [{**USER, "status": "over"}]}, "input[0].status"),
        ({"input": [{**USER, "status": []}]}, "input[0].status"),
        ({"input": [{**CALL, "call_id": None}]}, "input[0].call_id"),
        ({"input": [{**CALL, "name": ""}]}, "input[0].name"),
        ({"input": [{**CALL, "arguments": {}}]}, "input[0].arguments"),
        ({"input": [{**OUTPUT, "output": None}]}, "input[0].output"),
        ({"input": [{**OUTPUT, "output": [{"type": "input_file"}]}]}, "input[0].output[0]"),
        ({"input": [{**OUTPUT, "call_id": 5}]}, "input[0].call_id"),
        ({"input": [{**REASONING, "content": "so"}]}, "input[0].content"),
        ({"input": [{**REASONING, "content": ["so"]}]}, "input[0].content[0]"),
        ({"input": [{**REASONING, "content": [{"type": "reasoning_text"}]}]}, "input[0].content[0].text"),
        ({"input": [{**REASONING, "summary": [{"type": "text", "text": "a"}]}]}, "input[0].summary[0]"),
        ({"instructions": ["a"]}, "instructions"),
        ({"previous_response_id": 5}, "previous_response_id"),
        ({"store": "yes"}, "store"),
        ({"stream": 1}, "stream"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": "7"}, "max_output_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"include": "all"}, "include"),
        ({"include": ["all"]}, "include[0]"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"top_logprobs": 21, "include": ["message.output_text.logprobs"]}, "top_logprobs"),
        ({"tools": {}}, "tools"),
        ({"tools": [5]}, "tools[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].name"),
        ({"tools": [{**WEATHER, "name": ""}]}, "tools[0].name"),
        ({"tools": [{**WEATHER, "description": 5}]}, "tools[0].description"),
        ({"tools": [{**WEATHER, "parameters": []}]}, "tools[0].parameters"),
        ({"tools": [{**WEATHER, "strict": "yes"}]}, "tools[0].strict"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"parallel_tool_calls": 0}, "parallel_tool_calls"),
        ({"max_tool_calls": "a"}, "max_tool_calls"),
        ({"reasoning": "low"}, "reasoning"),
        ({"reasoning": {"effort": 5}}, "reasoning.effort"),
        ({"text": "a"}, "text"),
        ({"text": {"format": "text"}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {}}}}, "text.format"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"truncation": "auto"}, "truncation"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "a"}}, "prompt"),
        ({"messages": [USER]}, "messages"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"stop": [""]}, "stop"),
        ({"priority": 1 << 40}, "priority"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {"a": 5}}, "metadata"),
        ({"metadata": {"a" * 65: "b"}}, "metadata"),
        ({"metadata": {"a": "b" * 513}}, "metadata"),
        ({"metadata": {str(n): "b" for n in range(17)}}, "metadata"),
        ({"user": 5}, "user"),
        ({"prompt_cache_key": 5}, "prompt_cache_key"),
        ({"service_tier": 5}, "service_tier"),
        ({"stream_options": 5}, "stream_options"),
        ({"metadata": {"a": "\ud800"}}, "metadata"),
        ({"tools": [{**WEATHER, "parameters": {"a": float("nan")}}]}, "tools"),
        ({"input": [{**USER, "id": "\udfff"}]}, "input[0]"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    def read() -> None:
        made = body(**fields)
        made.terms()
        made.asked_response(made.sampling({}))

    with pytest.raises(InvalidRequestError) as refused:
        read()
    assert refused.value.param == param and param.partition("[")[0] in refused.value.message
    assert len(refused.value.message) < 500


def test_every_field_of_a_chat_is_known_and_has_one_meaning() -> None:
    known = ResponsesBody.known_fields()
    assert ChatBody.known_fields() <= known and not {"items", "shown"} & known


def test_the_documentation_lists_every_field_and_item() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "http-api.md").read_text()
    section = page.split("\n## OpenAI's responses\n")[1].split("\n## ")[0]
    fields = {*_Asked.model_fields, *RESPONSES} - {*CHAT, "model"}
    assert [name for name in sorted({*fields, *ITEMS, *TEXT_PARTS} - {"text"}) if f"`{name}`" not in section] == []
