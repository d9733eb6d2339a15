"""The `openai` package against a running cluster, unmodified: sync and async, streams, n, logprobs, errors."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator

import openai
import pytest
import pytest_asyncio

from tests.cluster.cluster import Cluster
from tests.http.conftest import MAX_MODEL_LEN

pytestmark = pytest.mark.asyncio(loop_scope="module")

MESSAGES = [{"role": "user", "content": "Hello!"}]
SEEDED = {"temperature": 2.0, "seed": 5}


@pytest_asyncio.fixture(loop_scope="module")
async def client(cluster: Cluster) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_models_are_listed_and_found_by_name(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in await client.models.list()] == ["demo", "gpt-demo", "claude-demo"]
    for name in ("demo", "gpt-demo"):
        assert (await client.models.retrieve(name)).id == name
        answer = await client.completions.create(model=name, prompt="The", max_tokens=1)
        assert answer.model == name
    with pytest.raises(openai.NotFoundError, match="gpt-4"):
        await client.models.retrieve("gpt-4")


async def test_a_chat_is_answered_whole_and_as_a_stream_alike(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0)
    [choice] = whole.choices
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason == "stop"
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens

    text, finish, usage = "", None, None
    async for chunk in await client.chat.completions.create(
        model="demo", messages=MESSAGES, temperature=0, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for part in chunk.choices:
            text += part.delta.content or ""
            finish = part.finish_reason or finish
    assert (text, finish) == (choice.message.content, "stop")
    assert usage.completion_tokens == whole.usage.completion_tokens


async def test_token_ids_are_shown_with_the_text_that_they_make(client: openai.AsyncOpenAI) -> None:
    """Of a chat and of two prompts, streamed or not; asked again as token ids they give the same answer."""
    shows = {"return_token_ids": True}
    chat = await client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0, extra_body=shows)
    prompt, answer = chat.prompt_token_ids, chat.choices[0].token_ids  # type: ignore[attr-defined]
    assert (len(prompt), len(answer)) == (chat.usage.prompt_tokens, chat.usage.completion_tokens)
    again = await client.completions.create(model="demo", prompt=prompt, max_tokens=64, temperature=0)
    assert again.choices[0].text == chat.choices[0].message.content

    chunks = [
        chunk
        async for chunk in await client.chat.completions.create(
            model="demo", messages=MESSAGES, temperature=0, stream=True, extra_body=shows
        )
    ]
    assert [getattr(chunk, "prompt_token_ids", None) for chunk in chunks] == [prompt] + [None] * (len(chunks) - 1)
    assert [token for chunk in chunks for token in getattr(chunk.choices[0], "token_ids", ())] == answer

    two = {"model": "demo", "prompt": [prompt, [5, 6]], "max_tokens": 4, "temperature": 0, "extra_body": shows}
    whole = await client.completions.create(**two)
    assert [choice.prompt_token_ids for choice in whole.choices] == two["prompt"]  # type: ignore[attr-defined]
    prompts, tokens = {}, {0: [], 1: []}
    async for chunk in await client.completions.create(**two, stream=True):
        [choice] = chunk.choices
        tokens[choice.index] += choice.token_ids
        if hasattr(choice, "prompt_token_ids"):
            assert choice.index not in prompts
            prompts[choice.index] = choice.prompt_token_ids
    assert [prompts[0], prompts[1]] == two["prompt"]
    assert [tokens[0], tokens[1]] == [choice.token_ids for choice in whole.choices]  # type: ignore[attr-defined]


async def test_each_chunk_may_have_the_usage_so_far(client: openai.AsyncOpenAI) -> None:
    chunks = [
        chunk
        async for chunk in await client.completions.create(
            model="demo",
            prompt="The",
            max_tokens=12,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True},
            stream_options={"include_usage": True, "continuous_usage_stats": True},  # type: ignore[typeddict-unknown-key]
        )
    ]
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None]
    assert len(counts) == len(chunks) and counts == sorted(counts) and counts[0] >= 1 and counts[-1] == 12


async def test_tokens_of_logprobs_may_be_named_by_their_ids(client: openai.AsyncOpenAI) -> None:
    shows = {"return_tokens_as_token_ids": True, "return_token_ids": True}
    answer = await client.completions.create(
        model="demo", prompt="The", max_tokens=4, temperature=0, logprobs=2, extra_body=shows
    )
    [choice] = answer.choices
    assert choice.logprobs is not None and choice.logprobs.top_logprobs is not None
    named = [f"token_id:{token}" for token in choice.token_ids]  # type: ignore[attr-defined]
    assert choice.logprobs.tokens == named
    assert all(name in top for name, top in zip(named, choice.logprobs.top_logprobs, strict=True))
    chat = await client.chat.completions.create(
        model="demo", messages=MESSAGES, max_tokens=4, temperature=0, logprobs=True, top_logprobs=2, extra_body=shows
    )
    [first] = chat.choices
    assert first.logprobs is not None
    assert [entry.token for entry in first.logprobs.content or ()] == [
        f"token_id:{token}"
        for token in first.token_ids  # type: ignore[attr-defined]
    ]


async def test_two_choices_are_two_answers_of_one_seed(client: openai.AsyncOpenAI) -> None:
    async def ask() -> list[str]:
        answer = await client.completions.create(model="demo", prompt="The", n=2, max_tokens=24, **SEEDED)
        assert [choice.index for choice in answer.choices] == [0, 1]
        return [choice.text for choice in answer.choices]

    first, again = await ask(), await ask()
    assert first == again and first[0] != first[1]

    texts = ["", ""]
    async for chunk in await client.completions.create(
        model="demo", prompt="The", n=2, max_tokens=24, stream=True, **SEEDED
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == first


async def test_several_prompts_are_answered_in_order(client: openai.AsyncOpenAI) -> None:
    both = await client.completions.create(model="demo", prompt=["One", "Two"], max_tokens=6, temperature=0)
    each = [
        await client.completions.create(model="demo", prompt=prompt, max_tokens=6, temperature=0)
        for prompt in ("One", "Two")
    ]
    assert [choice.text for choice in both.choices] == [answer.choices[0].text for answer in each]


async def test_logprobs_of_a_chat_read_back_as_its_text(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="demo", messages=MESSAGES, temperature=0, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    raw = b"".join(bytes(token.bytes) for token in content[:-1])  # without the end of turn
    assert raw.decode() == answer.choices[0].message.content
    for token in content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == token.top_logprobs[0].logprob, "greedy takes the highest"
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1.0 + 1e-5


async def test_logprobs_of_a_completion_have_offsets_into_its_text(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="demo", prompt="Hello", max_tokens=8, temperature=0, logprobs=2)
    choice = answer.choices[0]
    assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs) == len(choice.logprobs.text_offset)
    for token, offset in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True):
        if token.isascii() and not token.startswith("<|"):
            assert choice.text.startswith(token, offset)


async def test_a_stop_string_ends_the_answer_before_it(client: openai.AsyncOpenAI) -> None:
    free = await client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0)
    text = free.choices[0].message.content
    stop = text[len(text) // 2 :][:4]
    cut = await client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0, stop=stop)
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


async def test_max_tokens_ends_an_answer_by_length(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="demo", messages=MESSAGES, max_completion_tokens=2)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 2


async def test_errors_arrive_as_their_classes(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        await client.chat.completions.create(model="demo", messages=MESSAGES, temperature=-1)
    assert (bad.value.status_code, bad.value.param, bad.value.type) == (400, "temperature", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match=str(MAX_MODEL_LEN)) as long:
        await client.completions.create(model="demo", prompt=[5] * MAX_MODEL_LEN)
    assert long.value.param == "prompt"
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.completions.create(model="gpt-4", prompt="hi")
    assert (unknown.value.status_code, unknown.value.param, unknown.value.type) == (404, "model", "not_found_error")


async def test_a_stream_that_is_closed_early_ends_the_answer(client: openai.AsyncOpenAI, cluster: Cluster) -> None:
    stream = await client.completions.create(
        model="demo", prompt="Hello", max_tokens=900, stream=True, extra_body={"ignore_eos": True}
    )
    async for _ in stream:
        break
    await stream.close()
    await cluster.at_rest(2.0)


async def test_the_synchronous_client_does_the_same(cluster: Cluster) -> None:
    def use() -> None:
        with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as client:
            whole = client.chat.completions.create(
                model="demo", messages=MESSAGES, n=2, logprobs=True, top_logprobs=1, **SEEDED
            )
            assert len(whole.choices) == 2 and whole.choices[1].logprobs.content
            texts = ["", ""]
            for chunk in client.chat.completions.create(model="demo", messages=MESSAGES, n=2, stream=True, **SEEDED):
                for choice in chunk.choices:
                    texts[choice.index] += choice.delta.content or ""
            assert texts == [choice.message.content for choice in whole.choices]
            with pytest.raises(openai.BadRequestError) as bad:
                client.completions.create(model="demo", prompt="hi", top_p=2)
            assert bad.value.param == "top_p"

    await asyncio.to_thread(use)


async def test_without_max_tokens_a_completion_takes_what_the_context_leaves(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model="demo", prompt=[5] * (MAX_MODEL_LEN - 3), extra_body={"ignore_eos": True}
    )
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (3, "length")


async def test_the_choices_of_a_prompt_share_its_cached_tokens(client: openai.AsyncOpenAI) -> None:
    prompt = [(i * 37) % 1500 + 20 for i in range(70)]
    for cached in (0, 64):
        usage = (await client.completions.create(model="demo", prompt=prompt, n=3, max_tokens=2, **SEEDED)).usage
        assert usage.prompt_tokens_details.cached_tokens == cached
