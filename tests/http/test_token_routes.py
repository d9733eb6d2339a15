"""What is told without an answer: token ids, texts, what the server is."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

import rtp_llm
from tests.cluster.cluster import Cluster

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = "What is 23 + 58? Größe 🎈"
MESSAGES = [{"role": "user", "content": TEXT}]


async def told(cluster: Cluster, path: str, **body: Any) -> dict[str, Any]:
    response = await cluster.client.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def usage(cluster: Cluster, path: str, **body: Any) -> int:
    return int((await told(cluster, path, max_tokens=1, **body))["usage"]["prompt_tokens"])


async def test_a_text_has_the_tokens_that_a_completion_counts(cluster: Cluster) -> None:
    answer = await told(cluster, "/tokenize", model="demo", prompt=TEXT)
    assert answer["count"] == len(answer["tokens"]) == await usage(cluster, "/v1/completions", prompt=TEXT)
    assert answer["max_model_len"] == 1024 and answer["token_strs"] is None
    assert (await told(cluster, "/detokenize", tokens=answer["tokens"])) == {"prompt": TEXT}
    named = (await told(cluster, "/tokenize", prompt="What is it?", return_token_strs=True))["token_strs"]
    assert "".join(named) == "What is it?"


async def test_a_chat_has_the_tokens_that_its_answer_counts(cluster: Cluster) -> None:
    chat = {"messages": MESSAGES, "enable_thinking": False}
    answer = await told(cluster, "/tokenize", **chat)
    assert answer["count"] == await usage(cluster, "/v1/chat/completions", **chat)
    for path in ("/v1/chat/render", "/chat/render"):
        rendered = await told(cluster, path, **chat)
        assert rendered["prompt_token_ids"] == answer["tokens"] and rendered["count"] == answer["count"]
        assert TEXT in rendered["prompt"] and rendered["prompt"].endswith("</think>\n\n")
    left_open = await told(cluster, "/v1/chat/render", messages=MESSAGES, continue_final_message=True)
    assert left_open["prompt"].endswith(TEXT)


async def test_tokens_stand_in_their_text(cluster: Cluster) -> None:
    answer = await told(cluster, "/tokenizer/encode", prompt=TEXT, return_offsets_mapping=True)
    assert answer["token_ids"] == (await told(cluster, "/tokenize", prompt=TEXT))["tokens"]
    spans = answer["offset_mapping"]
    assert len(spans) == len(answer["tokens"]) and spans[0][0] == 0 and spans[-1][1] == len(TEXT)
    assert "offset_mapping" not in await told(cluster, "/tokenizer/encode", prompt=TEXT)


async def test_a_text_may_be_longer_than_the_context_and_is_read_elsewhere(cluster: Cluster) -> None:
    """It is larger than what the router itself parses."""
    text = "word " * 10_000
    answer = await told(cluster, "/tokenize", prompt=text)
    assert answer["count"] > answer["max_model_len"] == 1024
    assert (await told(cluster, "/detokenize", tokens=answer["tokens"]))["prompt"] == text


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "\ud800"}, "prompt"),
        ("/tokenize", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("/tokenize", {"messages": MESSAGES, "chat_template": "{{ x }}"}, "chat_template"),
        ("/tokenize", {"prompt": "a", "model": "gpt-4"}, "model"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [5, 10**9]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens"),
        ("/v1/chat/render", {}, "messages"),
        ("/v1/chat/render", {"messages": []}, "messages"),
    ],
)
async def test_what_cannot_be_told_is_refused_by_name(
    path: str, body: dict[str, Any], param: str, cluster: Cluster
) -> None:
    response = await cluster.client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert response.status_code == (404 if param == "model" else 400), response.text
    assert response.json()["error"]["param"] == param
    assert (await cluster.client.post(path, content=b"x")).status_code == 415


async def test_what_the_server_is(cluster: Cluster) -> None:
    assert (await cluster.client.get("/version")).json() == {"version": rtp_llm.__version__}
    assert (await cluster.client.get("/ping")).status_code == (await cluster.client.post("/ping")).status_code == 200
    info = (await cluster.client.get("/server_info")).json()
    assert info == (await cluster.client.get("/get_server_info")).json()
    assert (info["model"], info["max_model_len"], info["version"]) == ("demo", 1024, rtp_llm.__version__)
    assert info["config"]["model"]["served_name"] == "demo" and not {"worker", "http", "otel"} & info["config"].keys()


async def test_load_counts_answers_that_are_being_made(cluster: Cluster) -> None:
    async def load() -> int:
        return int((await cluster.client.get("/load")).json()["server_load"])

    assert await load() == 0
    body = {"prompt": "The", "max_tokens": 300, "ignore_eos": True, "n": 2}
    answers = asyncio.create_task(told(cluster, "/v1/completions", **body))
    while await load() != 2:
        assert not answers.done()
        await asyncio.sleep(0.005)
    await answers
    assert await load() == 0
