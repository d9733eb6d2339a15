"""Every route's answers, whole and streamed, are as /openapi.json describes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.config import DEMO_MODEL
from tests.cluster.cluster import Cluster
from tests.described import Described

pytestmark = pytest.mark.asyncio(loop_scope="module")

SUM = "What is 23 + 58?"
CHAT = {"messages": [{"role": "user", "content": SUM}], "max_tokens": 8}
CALLS = json.loads((Path(__file__).parent / "cases" / "tool_calls_of_an_answer.json").read_text())
CALLING = {**CALLS["request"], **CALLS["cases"][0]["change"]}
SHOWN = {"n": 2, "return_token_ids": True, "return_timings": True}
RAW = {"generate_config": {"max_new_tokens": 5, "return_output_ids": True, "return_input_ids": True}}
POSTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": SUM}),
    ("/v1/completions", {"prompt": [SUM, "hi"], "logprobs": 2, **SHOWN}),
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2, **SHOWN}),
    ("/v1/chat/completions", CALLING),
    ("/v1/chat/completions/batch", {**CHAT, "messages": [CHAT["messages"]] * 2, **SHOWN}),
    ("/v1/messages", CHAT),
    ("/v1/messages", {**CHAT, "stop_sequences": ["8"]}),
    ("/v1/responses", {"input": SUM, "metadata": {"a": "b"}}),
    ("/v1/responses", {"input": SUM, "max_output_tokens": 2, "include": ["message.output_text.logprobs"]}),
    ("/", {"prompt": SUM, **RAW}),
    ("/", {"prompt_batch": [SUM, "hi"], **RAW}),
    ("/", {"prompt": SUM, "generate_config": {"max_new_tokens": 5, "num_return_sequences": 2, "aux_info": False}}),
    ("/batch_infer", {"prompt_batch": [SUM, "hi"], **RAW}),
]
TOLD: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/tokenize", {"prompt": SUM}),
    ("POST", "/tokenize", {**CHAT, "return_token_strs": True}),
    ("POST", "/detokenize", {"tokens": [5, 6]}),
    ("POST", "/tokenizer/encode", {"prompt": SUM}),
    ("POST", "/tokenizer/encode", {"prompt": SUM, "return_offsets_mapping": True}),
    ("POST", "/v1/chat/render", CHAT),
    ("POST", "/chat/render", CHAT),
    ("POST", "/v1/messages/count_tokens", {"messages": CHAT["messages"]}),
    ("POST", "/v1/responses/input_tokens", {"input": SUM}),
    *(("GET", path, {}) for path in ("/v1/models", "/version", "/live", "/ready", "/health", "/load", "/metrics")),
    *(("GET", path, {}) for path in ("/openapi.json", "/server_info", "/get_server_info", "/is_paused")),
    *((method, "/ping", {}) for method in ("GET", "POST")),
    *(
        (method, f"{prefix}/{name}_status", {})
        for method in ("GET", "POST")
        for prefix in ("", "/rtp_llm")
        for name in ("worker", "cache")
    ),
    ("POST", "/pause", {}),
    ("GET", "/is_paused", {}),
    ("POST", "/resume", {}),
    ("POST", "/update_weights", {"path": str(DEMO_MODEL), "mode": "wait"}),
    ("GET", "/is_paused", {}),
    ("POST", "/reset_prefix_cache", {}),
]


async def test_every_answer_is_as_it_is_described(cluster: Cluster) -> None:
    described = await Described.by(cluster.client)
    for path, body in POSTS:
        for streamed in (False, True):
            if streamed and path == "/batch_infer":
                continue
            answer = await cluster.client.post(path, json={**body, "stream": streamed})
            assert answer.status_code == 200, (path, body, answer.text)
            described.check("POST", path, answer)
    usage = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    described.check(
        "POST", "/v1/completions", await cluster.client.post("/v1/completions", json={**POSTS[0][1], **usage})
    )
    for method, path, body in TOLD:
        answer = await cluster.client.request(method, path, json=body if method == "POST" else None)
        assert answer.status_code == 200, (method, path, answer.text)
        described.check(method, path, answer)

    kept = (await cluster.client.post("/v1/responses", json={"input": SUM})).json()["id"]
    for method, path in (
        ("GET", "/v1/responses/{id}"),
        ("GET", "/v1/responses/{id}/input_items"),
        ("DELETE", "/v1/responses/{id}"),
        ("GET", "/v1/models/{name}"),
    ):
        answer = await cluster.client.request(method, path.format(id=kept, name="demo"))
        assert answer.status_code == 200, (method, path, answer.text)
        described.check(method, path, answer)
    assert described.answers - described.seen == set()


async def test_every_refusal_is_as_it_is_described(cluster: Cluster) -> None:
    described = await Described.by(cluster.client)
    paths = {path for method, path, _ in described.answers if method == "POST"} - {"/ping"}
    for path in sorted(path for path in paths if not path.endswith("_status")):
        answer = await cluster.client.post(path, json={"model": 5, "pool": 5})
        assert answer.status_code in (400, 404), (path, answer.text)
        described.check("POST", path, answer)
    for path in ("/v1/responses/{id}", "/v1/responses/{id}/input_items", "/v1/models/{name}"):
        answer = await cluster.client.get(path.format(id="resp_none", name="none"))
        assert answer.status_code == 404
        described.check("GET", path, answer)
