"""Answers that no small model gives at will, thoughts, calls, failures, are as /openapi.json describes them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from jsonschema import ValidationError

from rtp_llm.errors import WorkerLostError
from rtp_llm.router.answer_schemas import ANY_OBJECT, SHAPES
from tests.described import Described, data_of
from tests.router.scripted_service import ScriptedService

FUNCTION = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
SAYS = {
    "a text": "It is 81.",
    "nothing": "",
    "a thought and a text": "<think>\nIt is a sum.\n</think>\n\nIt is 81.",
    "a thought alone": "<think>\nIt is a sum",
    "a call": CALL,
    "a text and two calls": f"Let me see.\n{CALL}\n{CALL}",
    "all": f"<think>\nHm.\n</think>\n\nLet me see.\n{CALL}",
}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 100}
CHATS = {
    **CHAT,
    "logprobs": True,
    "top_logprobs": 1,
    "return_token_ids": True,
    "tools": [{"type": "function", "function": FUNCTION}],
}
ASKED: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "hi", "max_tokens": 100, "logprobs": 1},
    "/v1/chat/completions": CHATS,
    "/v1/messages": {**CHAT, "tools": [{"name": "get_weather", "input_schema": FUNCTION["parameters"]}]},
    "/v1/responses": {
        "input": "hi",
        "instructions": "be brief",
        "tools": [{"type": "function", **FUNCTION}],
        "include": ["message.output_text.logprobs"],
    },
    "/": {"prompt": "hi", "generate_config": {"max_new_tokens": 100}},
}


@pytest_asyncio.fixture
async def router() -> AsyncIterator[ScriptedService]:
    async with ScriptedService.running(**{"model.reasoning_parser": "qwen3", "model.tool_parser": "hermes"}) as router:
        yield router


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("said", SAYS.values(), ids=SAYS)
async def test_what_a_model_says_is_as_it_is_described(router: ScriptedService, path: str, said: str) -> None:
    described = await Described.by(router.http)
    router.says = [said, said]
    for streamed in (False, True):
        answer = await router.http.post(path, json={**ASKED[path], "stream": streamed})
        assert answer.status_code == 200, answer.text
        described.check("POST", path, answer)


@pytest.mark.parametrize("path", ASKED)
async def test_what_a_stream_says_that_fails_is_as_it_is_described(router: ScriptedService, path: str) -> None:
    described = await Described.by(router.http)
    router.says = ["It is", WorkerLostError("the worker was lost")]
    answer = await router.http.post(path, json={**ASKED[path], "stream": True})
    described.check("POST", path, answer)
    assert "the worker was lost" in answer.text


async def test_calls_and_thoughts_are_among_what_is_described(router: ScriptedService) -> None:
    """So that the first test sees what it says."""
    router.says = [SAYS["all"]] * 2
    message = (await router.http.post("/v1/chat/completions", json=CHATS)).json()["choices"][0]["message"]
    assert message["reasoning"] and message["tool_calls"] and message["content"]
    streamed = await router.http.post("/v1/responses", json={**ASKED["/v1/responses"], "stream": True})
    kinds = {each["type"] for each in data_of(streamed.text)}
    assert {"response.reasoning_text.delta", "response.function_call_arguments.done"} <= kinds


async def test_a_field_that_is_not_described_is_found(router: ScriptedService) -> None:
    described = await Described.by(router.http)
    described.check("GET", "/version", httpx.Response(200, json={"version": "1"}))
    with pytest.raises(ValidationError, match="more"):
        described.check("GET", "/version", httpx.Response(200, json={"version": "1", "more": 1}))


def test_each_object_says_what_it_holds() -> None:
    """But for settings, tools and the items of an input, which are a client's or a person's to write."""
    open_ones = [each for shape in SHAPES.values() for each in objects(shape.body) if "properties" in each]
    assert len(open_ones) > 50
    assert all(each["additionalProperties"] is False for each in open_ones)
    unsaid = [name for shape in SHAPES.values() for name, each in named(shape.body) if each == ANY_OBJECT]
    assert set(unsaid) == {"config", "tools"}


def test_a_name_stands_for_one_schema() -> None:
    shapes = [(shape.name, shape.body) for shape in SHAPES.values()]
    assert all(body == dict(shapes)[name] for name, body in shapes)


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    for _, each in named(schema):
        if each.get("type") == "object":
            yield each


def named(schema: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """All schemas in `schema`, by the property that they are of."""
    yield name, schema
    for field, each in schema.get("properties", {}).items():
        yield from named(each, field)
    for each in (*schema.get("anyOf", ()), schema.get("items"), schema.get("additionalProperties")):
        if isinstance(each, dict):
            yield from named(each, name)
