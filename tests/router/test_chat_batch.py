"""/v1/chat/completions/batch: several conversations in one body."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.router.spoken import CACHED, Spoken

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROUTE = "/v1/chat/completions/batch"
HI, HO = ([{"role": "user", "content": text}] for text in ("hi", "ho"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def spoken() -> AsyncIterator[Spoken]:
    async with Spoken.running(**{"router.max_choices": 4}) as spoken:
        assert isinstance(spoken, Spoken)
        yield spoken


@pytest.fixture
def router(spoken: Spoken) -> Spoken:
    spoken.anew()
    spoken.speak = lambda prompt, choice: f"{'hi' if 'hi' in prompt else 'ho'} {choice}"
    return spoken


@pytest.fixture
def http(router: Spoken) -> httpx.AsyncClient:
    return router.http


async def rendered(http: httpx.AsyncClient, messages: list[Any]) -> list[int]:
    ids: list[int] = (await http.post("/v1/chat/render", json={"messages": messages})).json()["prompt_token_ids"]
    return ids


async def test_each_conversation_is_a_choice(http: httpx.AsyncClient) -> None:
    answer = (await http.post(ROUTE, json={"messages": [HI, HO], "return_token_ids": True})).json()
    assert answer["object"] == "chat.completion"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["hi 0", "ho 0"]
    prompts = [await rendered(http, each) for each in (HI, HO)]
    assert [choice["prompt_token_ids"] for choice in answer["choices"]] == prompts
    usage = answer["usage"]
    assert usage["prompt_tokens"] == sum(map(len, prompts))
    assert usage["prompt_tokens_details"]["cached_tokens"] == 2 * CACHED


async def test_answers_of_a_conversation_stand_side_by_side(http: httpx.AsyncClient) -> None:
    answer = (await http.post(ROUTE, json={"messages": [HI, HO], "n": 2})).json()
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["hi 0", "hi 1", "ho 0", "ho 1"]


async def test_it_streams_by_choice(http: httpx.AsyncClient) -> None:
    asked = {"messages": [HI, HO], "stream": True, "return_token_ids": True}
    lines = (await http.post(ROUTE, json=asked)).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    choices = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines[:-2]]
    said = ["".join(each["delta"].get("content", "") for each in choices if each["index"] == i) for i in (0, 1)]
    assert said == ["hi 0", "ho 0"]
    first = [next(each for each in choices if each["index"] == i) for i in (0, 1)]
    assert [each["prompt_token_ids"] for each in first] == [await rendered(http, each) for each in (HI, HO)]


async def test_each_conversations_answer_is_read_by_its_own_prompts_end(
    http: httpx.AsyncClient, router: Spoken
) -> None:
    """One goes on within its reasoning, the other begins anew."""
    router.speak = lambda prompt, choice: "so</think>\n\nyes" if "hmm" in prompt else "yes"
    thinking = [*HI, {"role": "assistant", "content": "<think>\nhmm "}]
    plain = [*HO, {"role": "assistant", "content": "<think>\nwell</think>\n\n"}]
    asked = {"continue_final_message": True}
    batch = (await http.post(ROUTE, json={"messages": [thinking, plain], **asked})).json()["choices"]
    alone = [
        (await http.post("/v1/chat/completions", json={"messages": each, **asked})).json()["choices"][0]
        for each in (thinking, plain)
    ]
    assert [each["message"] for each in batch] == [each["message"] for each in alone]
    assert [each["message"].get("reasoning_content") for each in batch] == ["so", None]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": HI}, "messages"),
        ({"messages": [HI, "x"]}, "messages"),
        ({"messages": [HI, []]}, "messages[1]"),
        ({"messages": [HI, [{"role": "user"}]]}, "messages[1][0].content"),
        ({"messages": [[{"role": "user", "content": "x " * 3000}]]}, "messages[0]"),
        ({"messages": [HI] * 5}, "messages"),
        ({"messages": [HI] * 3, "n": 2}, "messages"),
        ({"messages": [HI], "temperature": -1}, "temperature"),
        ({"messages": [HI], "use_beam_search": True}, "use_beam_search"),
    ],
)
async def test_a_bad_field_is_named_in_its_conversation(
    http: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    answer = await http.post(ROUTE, json=fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param and error["message"].startswith(param), error
