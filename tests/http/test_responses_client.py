"""The `openai` package against /v1/responses of a running cluster: turns that are kept, tools, reasoning."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai.types.responses import Response

from tests.cluster.cluster import Cluster

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUESTION = "What is 23 + 58?"
ANSWER = "23 + 58 = 81."
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest_asyncio.fixture(loop_scope="module")
async def client(cluster: Cluster) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def both(client: openai.AsyncOpenAI, **asked: Any) -> Response:
    """The response, which is the same streamed."""
    whole = await client.responses.create(model="demo", temperature=0, **asked)
    async with client.responses.stream(model="demo", temperature=0, **asked) as stream:
        streamed = await stream.get_final_response()
    assert [item.type for item in streamed.output] == [item.type for item in whole.output]
    assert streamed.output_text == whole.output_text and streamed.status == whole.status == "completed"
    assert streamed.usage is not None and whole.usage is not None
    assert streamed.usage.total_tokens == whole.usage.total_tokens
    return whole


async def test_turns_are_answered_whole_and_as_a_stream_alike(client: openai.AsyncOpenAI) -> None:
    first = await both(client, input=QUESTION, instructions="Answer briefly.")
    assert first.output_text == ANSWER and first.usage is not None
    count = await client.responses.input_tokens.count(model="demo", input=QUESTION, instructions="Answer briefly.")
    assert count.input_tokens == first.usage.input_tokens
    second = await both(client, input="What is 4 + 32?", previous_response_id=first.id)
    assert second.output_text == "4 + 32 = 36."
    assert second.usage is not None and second.usage.input_tokens_details.cached_tokens >= 0


async def test_tools_are_called_and_their_results_taken(client: openai.AsyncOpenAI) -> None:
    response = await both(client, input="What is the weather in Paris?", tools=[WEATHER])
    [call] = response.output
    assert call.type == "function_call" and (call.name, call.arguments) == ("get_weather", '{"city": "Paris"}')
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny, 21 degrees"}
    said = await both(client, input=[result], previous_response_id=response.id, tools=[WEATHER])
    assert "sunny" in said.output_text


async def test_reasoning_is_an_item_of_its_own(client: openai.AsyncOpenAI) -> None:
    response = await both(client, input="What is 7*91? Please think step by step.")
    thought, _ = response.output
    assert thought.type == "reasoning" and thought.content is not None
    assert thought.content[0].text == "7 x 90 = 630, 7 x 1 = 7, 630 + 7 = 637."
    assert response.output_text.endswith("So 7 x 91 = 637.") and response.usage is not None
    assert 5 < response.usage.output_tokens_details.reasoning_tokens < response.usage.output_tokens
