"""The `openai` Python client, unmodified."""

from collections.abc import AsyncIterator, Iterator

import openai
import pytest
import pytest_asyncio

MODEL = "demo"
QUESTION = [{"role": "user", "content": "What is 23 + 58?"}]
ANSWER = "23 + 58 = 81."


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest_asyncio.fixture
async def async_client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert (
        answer.usage is not None
        and answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    )


def test_chat_streamed_with_usage(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and chunks[-1].usage.completion_tokens > 5
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"


async def test_async_chat_plain_and_streamed(async_client: openai.AsyncOpenAI) -> None:
    answer = await async_client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    assert answer.choices[0].message.content == ANSWER
    stream = await async_client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == ANSWER


def test_two_choices_of_one_seed_differ_and_repeat(client: openai.OpenAI) -> None:
    def choices() -> list[str]:
        answer = client.completions.create(model=MODEL, prompt="Hello", n=2, seed=7, temperature=2.0, max_tokens=16)
        return [choice.text for choice in sorted(answer.choices, key=lambda choice: choice.index)]

    first = choices()
    assert len(first) == 2 and first[0] != first[1]
    assert choices() == first


def test_logprobs_of_chat_and_completions(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, logprobs=True, top_logprobs=2
    )
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content or []
    assert "".join(entry.token for entry in content).startswith("23")
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in content)
    completion = client.completions.create(model=MODEL, prompt="Hello", temperature=0, max_tokens=4, logprobs=3)
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None and logprobs.token_logprobs is not None
    assert len(logprobs.token_logprobs) == completion.usage.completion_tokens  # type: ignore[union-attr]


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]


def test_errors_have_the_clients_types_and_name_the_field(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-0", messages=QUESTION)
    assert "gpt-0" in unknown.value.message
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=-1)
    assert wrong.value.param == "temperature" and "-1" in wrong.value.message
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model=MODEL, prompt=[5] * 4000, max_tokens=1)
    assert "4000" in long.value.message
