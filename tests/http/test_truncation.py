"""truncate_prompt_tokens over HTTP: what is computed, counted and cached are the tokens that are kept."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.http.conftest import MAX_BODY_BYTES, MAX_MODEL_LEN

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def answer(cluster: Cluster, path: str = "/v1/completions", **fields: Any) -> dict[str, Any]:
    body = {"temperature": 0, "max_tokens": 8, "return_token_ids": True, **fields}
    response = await cluster.client.post(path, json=body)
    assert response.status_code == 200, response.text
    made: dict[str, Any] = response.json()
    return made


@pytest.mark.parametrize("size", [3_000, 20_000, MAX_BODY_BYTES - 300])  # read on the loop, in a thread, in a process
async def test_a_truncated_text_is_answered_and_counted_as_the_tokens_that_are_kept(
    cluster: Cluster, size: int
) -> None:
    text = ("What is 23 + 58? " * (size // 17 + 1))[-size:]
    response = await cluster.client.post("/tokenize", json={"prompt": text})
    tokens = response.json()["tokens"][-200:]
    cut = await answer(cluster, prompt=text, truncate_prompt_tokens=200)
    plain = await answer(cluster, prompt=tokens)
    assert cut["choices"][0]["prompt_token_ids"] == tokens
    assert cut["choices"][0]["token_ids"] == plain["choices"][0]["token_ids"]
    assert cut["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"] == 200
    assert plain["usage"]["prompt_tokens_details"]["cached_tokens"] > 0  # of the same prompt, which was truncated
    most = await answer(cluster, prompt=text, truncate_prompt_tokens=-1)
    assert most["usage"]["prompt_tokens"] == min(MAX_MODEL_LEN - 8, len(response.json()["tokens"]))


async def test_a_truncated_chat_is_counted_as_the_tokens_that_are_kept(cluster: Cluster) -> None:
    messages = [{"role": "user", "content": "What is 23 + 58? " * 1000}]
    path = "/v1/chat/completions"
    left = await answer(cluster, path, messages=messages, truncate_prompt_tokens=40)
    right = await answer(cluster, path, messages=messages, truncate_prompt_tokens=40, truncation_side="right")
    rendered = await cluster.client.post("/v1/chat/render", json={"messages": messages})
    tokens = rendered.json()["prompt_token_ids"]
    assert left["prompt_token_ids"] == tokens[-40:] and right["prompt_token_ids"] == tokens[:40]
    assert left["usage"]["prompt_tokens"] == right["usage"]["prompt_tokens"] == 40
    refused = await cluster.client.post(path, json={"messages": messages, "max_tokens": 8})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")


async def test_a_body_beyond_the_limit_is_refused_however_little_is_kept(cluster: Cluster) -> None:
    body = {"prompt": "x" * MAX_BODY_BYTES, "truncate_prompt_tokens": 1}
    assert (await cluster.client.post("/v1/completions", json=body)).status_code == 413
