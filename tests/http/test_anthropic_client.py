"""The `anthropic` package against a running cluster, unmodified: whole and streamed, tools, reasoning, errors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
import pytest_asyncio

from tests.cluster.cluster import Cluster

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUESTION: Any = [{"role": "user", "content": "What is 23 + 58?"}]
ANSWER = "23 + 58 = 81."
THOUGHT = "7 x 90 = 630, 7 x 1 = 7, 630 + 7 = 637."
WEATHER: Any = {
    "name": "get_weather",
    "description": "Get the weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def greedy(**asked: Any) -> dict[str, Any]:
    """A request; its newer clients know no temperature."""
    extra = {"temperature": 0, **asked.pop("extra_body", {})}
    return {"model": "demo", "max_tokens": 128, "extra_body": extra, **asked}


@pytest_asyncio.fixture(loop_scope="module")
async def client(cluster: Cluster) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=cluster.url, api_key="none", max_retries=0) as client:
        yield client


async def both(client: anthropic.AsyncAnthropic, **asked: Any) -> anthropic.types.Message:
    """The message, which is the same streamed: the client puts its events together."""
    whole = await client.messages.create(**greedy(**asked))
    async with client.messages.stream(**greedy(**asked)) as stream:
        kinds = [event.type async for event in stream]
        streamed = await stream.get_final_message()
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    assert blocks(streamed) == blocks(whole)
    assert (streamed.stop_reason, streamed.stop_sequence) == (whole.stop_reason, whole.stop_sequence)
    counted = whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)
    assert counted == streamed.usage.input_tokens + (streamed.usage.cache_read_input_tokens or 0)
    assert whole.usage.output_tokens == streamed.usage.output_tokens
    return whole


def blocks(message: anthropic.types.Message) -> list[dict[str, Any]]:
    """Its content, without what differs each time."""
    return [each.model_dump(exclude={"id", "caller"}, exclude_none=True) for each in message.content]


async def test_a_text_is_answered_whole_and_as_a_stream_alike(client: anthropic.AsyncAnthropic) -> None:
    message = await both(client, messages=QUESTION)
    assert message.id.startswith("msg_") and (message.type, message.role, message.model) == (
        "message",
        "assistant",
        "demo",
    )
    assert blocks(message) == [{"type": "text", "text": ANSWER}]
    assert message.stop_reason == "end_turn" and message.usage.output_tokens > 5
    count = await client.messages.count_tokens(model="demo", messages=QUESTION)
    assert count.input_tokens == message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)


async def test_system_and_blocks_reach_the_model(client: anthropic.AsyncAnthropic) -> None:
    plain = await client.messages.count_tokens(model="demo", messages=QUESTION)
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "What is 23 + 58?"}]}]
    assert (await client.messages.count_tokens(model="demo", messages=parts)).input_tokens == plain.input_tokens
    for system in ("Answer briefly.", [{"type": "text", "text": "Answer briefly."}]):
        count = await client.messages.count_tokens(model="demo", messages=QUESTION, system=system)  # type: ignore[arg-type]
        assert count.input_tokens > plain.input_tokens
        assert blocks(await both(client, messages=QUESTION, system=system)) == [{"type": "text", "text": ANSWER}]


async def test_a_limit_and_a_stop_sequence_end_an_answer(client: anthropic.AsyncAnthropic) -> None:
    short = await client.messages.create(**greedy(max_tokens=3, messages=QUESTION))
    assert short.stop_reason == "max_tokens" and short.usage.output_tokens == 3
    stopped = await both(client, messages=QUESTION, stop_sequences=["= "])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "= ")
    assert blocks(stopped) == [{"type": "text", "text": "23 + 58 "}]


async def test_the_last_word_of_the_assistant_is_gone_on_with(client: anthropic.AsyncAnthropic) -> None:
    begun = await both(client, messages=[*QUESTION, {"role": "assistant", "content": ANSWER[:7]}])
    assert blocks(begun) == [{"type": "text", "text": ANSWER[7:]}]


async def test_tools_are_called_and_their_results_taken(client: anthropic.AsyncAnthropic) -> None:
    asked: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
    message = await both(client, messages=asked, tools=[WEATHER])
    assert blocks(message) == [{"type": "tool_use", "name": "get_weather", "input": {"city": "Paris"}}]
    [call] = message.content
    assert message.stop_reason == "tool_use" and call.type == "tool_use" and call.id.startswith("call_")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "sunny, 21 degrees"}]}
    turns = [*asked, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    said = await both(client, messages=turns, tools=[WEATHER])
    assert said.stop_reason == "end_turn" and said.content[0].type == "text" and "sunny" in said.content[0].text
    none = await client.messages.create(**greedy(messages=asked, tools=[WEATHER], tool_choice={"type": "none"}))
    assert none.stop_reason == "end_turn"


async def test_reasoning_is_a_block_of_its_own(client: anthropic.AsyncAnthropic) -> None:
    asked: Any = [{"role": "user", "content": "What is 7*91? Please think step by step."}]
    message = await both(client, messages=asked)
    assert [each["type"] for each in blocks(message)] == ["thinking", "text"]
    assert blocks(message)[0]["thinking"] == THOUGHT and blocks(message)[1]["text"].endswith("So 7 x 91 = 637.")
    again = [*asked, {"role": "assistant", "content": message.content}, {"role": "user", "content": "What is 23 + 58?"}]
    assert blocks(await both(client, messages=again))[-1] == {"type": "text", "text": ANSWER}
    asked = [{"role": "user", "content": "Compute 4+32"}]
    enabled = {"type": "enabled", "budget_tokens": 1024}
    thinking = await client.messages.create(**greedy(messages=asked, thinking=enabled))
    assert blocks(thinking)[0]["thinking"] == "4 + 30 = 34, 34 + 2 = 36."


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"messages": [{"role": "system", "content": "a"}]}, r"messages\[0\]\.role must be 'user' or 'assistant'"),
        (
            {"messages": [{"role": "user", "content": 5}]},
            r"messages\[0\]\.content must be a text or a list of blocks, got 5",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            r"messages\[0\]\.content\[0\] must be a text",
        ),
        ({"messages": [{"role": "user", "content": ["a"]}]}, r"messages\[0\]\.content\[0\] must be a block"),
        (
            {
                "messages": [
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": 5}]}
                ]
            },
            r"messages\[0\]\.content\[0\]\.input must be an object, got 5",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}]},
            r"messages\[0\]\.content\[0\]\.tool_use_id must be a text, got None",
        ),
        ({"messages": []}, "messages must hold at least one message"),
        ({"messages": QUESTION, "tools": [{"name": "f"}]}, r"tools\[0\]\.input_schema must be an object, got None"),
        (
            {"messages": QUESTION, "tools": [{"type": "web_search_20250305", "name": "w"}]},
            r"tools\[0\]\.type .* not supported",
        ),
        (
            {"messages": QUESTION, "tools": [WEATHER], "tool_choice": {"type": "any"}},
            "tool_choice.type is not supported, got 'any'",
        ),
        ({"messages": QUESTION, "thinking": {"type": "much"}}, "thinking.type must be enabled, disabled or adaptive"),
        ({"messages": QUESTION, "metadata": {"user_id": 5}}, "metadata.user_id must be a text, got 5"),
        ({"messages": QUESTION, "stop_sequences": [5]}, "stop_sequences"),
        ({"messages": QUESTION, "extra_body": {"mcp_servers": [{"url": "x"}]}}, "mcp_servers is not supported"),
        ({"messages": QUESTION, "extra_body": {"max_tokens": None}}, "max_tokens is required"),
    ],
)
async def test_what_is_wrong_is_named(client: anthropic.AsyncAnthropic, asked: dict[str, Any], named: str) -> None:
    with pytest.raises(anthropic.BadRequestError, match=named) as refused:
        await client.messages.create(**greedy(**asked))
    body: Any = refused.value.body
    assert body["type"] == "error" and body["error"]["type"] == "invalid_request_error"


async def test_errors_have_the_clients_types(client: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="claude"):
        await client.messages.create(**greedy(model="claude", messages=QUESTION))
    with pytest.raises(anthropic.NotFoundError, match="claude"):
        await client.messages.count_tokens(model="claude", messages=QUESTION)
    long: Any = [{"role": "user", "content": "word " * 8000}]  # read in a process of its own
    with pytest.raises(anthropic.BadRequestError, match="maximum context length is 1024 tokens"):
        await client.messages.create(**greedy(messages=long))
