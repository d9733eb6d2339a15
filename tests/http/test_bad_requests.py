"""Bad input over HTTP: a clear error in OpenAI's shape that names field and value, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.workload import Answer, Body, bodies
from tests.http.conftest import MAX_BODY_BYTES, MAX_MODEL_LEN

pytestmark = pytest.mark.asyncio(loop_scope="module")

JSON = {"Content-Type": "application/json"}
COMPLETION: Body = {"model": "demo", "prompt": [5, 6, 7], "max_tokens": 4}
CHAT: Body = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}

# What is sent instead, the field that is named, and what the message says of it.
VALUES: list[tuple[Body, str, str]] = [
    ({"temperature": -0.1}, "temperature", "-0.1"),
    ({"temperature": "hot"}, "temperature", "hot"),
    ({"temperature": True}, "temperature", "True"),
    ({"temperature": 1e39}, "temperature", "1e+39"),
    ({"top_p": 1e-46}, "top_p", "1e-46"),
    ({"top_p": 0}, "top_p", "0"),
    ({"top_p": 1.5}, "top_p", "1.5"),
    ({"top_k": -2}, "top_k", "-2"),
    ({"top_k": 1.5}, "top_k", "1.5"),
    ({"min_p": -0.5}, "min_p", "-0.5"),
    ({"min_p": 2}, "min_p", "2"),
    ({"n": 0}, "n", "0"),
    ({"n": 1000}, "n", "1000"),
    ({"seed": 2**64}, "seed", str(2**64)),
    ({"seed": "lucky"}, "seed", "lucky"),
    ({"max_tokens": 0}, "max_tokens", "0"),
    ({"max_tokens": -5}, "max_tokens", "-5"),
    ({"max_tokens": 2**40}, "max_tokens", str(2**40)),
    ({"min_tokens": -1}, "min_tokens", "-1"),
    ({"min_tokens": 9}, "min_tokens", "9"),
    ({"stop": ""}, "stop", "''"),
    ({"stop": ["a", ""]}, "stop", "''"),
    ({"stop": [f"s{i}" for i in range(17)]}, "stop", "17"),
    ({"stop": 3}, "stop", "3"),
    ({"stop_token_ids": ["x"]}, "stop_token_ids", "x"),
    ({"stop_token_ids": [1 << 40]}, "stop_token_ids", str(1 << 40)),
    ({"stop_token_ids": [5, 2560]}, "stop_token_ids", "2560"),
    ({"stop_token_ids": [5] * 129}, "stop_token_ids", "129"),
    ({"stream": "yes"}, "stream", "yes"),
    ({"stream": False, "stream_options": {"include_usage": True}}, "stream_options", "'include_usage': True"),
    ({"ignore_eos": 1}, "ignore_eos", "1"),
    ({"presence_penalty": 2.5}, "presence_penalty", "2.5"),
    ({"frequency_penalty": -2.5}, "frequency_penalty", "-2.5"),
    ({"repetition_penalty": 0}, "repetition_penalty", "0"),
    ({"logit_bias": {"5": 101}}, "logit_bias", "101"),
    ({"logit_bias": {"five": 1}}, "logit_bias", "five"),
    ({"logit_bias": {"2560": 1}}, "logit_bias", "2560"),
    ({"allowed_token_ids": []}, "allowed_token_ids", "[]"),
    ({"allowed_token_ids": [5, 2560]}, "allowed_token_ids", "2560"),
    ({"allowed_token_ids": ["x"]}, "allowed_token_ids", "x"),
    ({"response_format": {"type": "json_object"}}, "response_format", "json_object"),
]
COMPLETION_VALUES: list[tuple[Body, str, str]] = [
    ({"logprobs": 21}, "logprobs", "21"),
    ({"logprobs": -1}, "logprobs", "-1"),
    ({"echo": True}, "echo", "True"),
    ({"best_of": 3}, "best_of", "3"),
    ({"suffix": "."}, "suffix", "."),
    ({"prompt": []}, "prompt", "[]"),
    ({"prompt": ""}, "prompt", "no tokens"),
    ({"prompt": [[]]}, "prompt", "no tokens"),
    ({"prompt": [5, "x"]}, "prompt", "x"),
    ({"prompt": [5, 2560]}, "prompt", "2560"),
    ({"prompt": [-1]}, "prompt", "-1"),
    ({"prompt": [1 << 70]}, "prompt", str(1 << 70)),
    ({"prompt": None}, "prompt", "None"),
    ({"prompt": "half a pair \ud800"}, "prompt", "Unicode"),
    ({"prompt": [5] * MAX_MODEL_LEN}, "prompt", str(MAX_MODEL_LEN)),
    ({"prompt": [5] * 1000, "max_tokens": 25}, "max_tokens", "25 and 1000 prompt tokens"),
    ({"prompt": "x" * 60_000}, "prompt", "60000 bytes"),
    ({"prompt": [[5]] * 65, "n": 2}, "prompt", "130"),
    ({"prompt": "a b c d e f g h i j k l m n o p " * 200}, "prompt", str(MAX_MODEL_LEN)),
]
CHAT_VALUES: list[tuple[Body, str, str]] = [
    ({"top_logprobs": 2}, "top_logprobs", "2"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "21"),
    ({"logprobs": 3}, "logprobs", "3"),
    ({"messages": []}, "messages", "messages"),
    ({"messages": "hi"}, "messages", "hi"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "required"),
    ({"messages": [{"content": "hi"}]}, "messages[0].role", "None"),
    ({"messages": [{"role": "assistant", "tool_calls": 5}]}, "messages[0].tool_calls", "5"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]", "image_url"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages", "Unicode"),
    ({"messages": [{"role": "user", "content": "word " * 2000}]}, "messages", str(MAX_MODEL_LEN)),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages", "reserved"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "0"),
    ({"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt", "true"),
    ({"reasoning_effort": "low"}, "reasoning_effort", "doesn't read it"),
    ({"tool_choice": "required"}, "tool_choice", "required"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "'name': 'f'"),
]
BYTES: list[tuple[bytes, int, str]] = [
    (b"", 400, "JSON"),
    (b"{", 400, "JSON"),
    (b"\xff\xfe{}", 400, "JSON"),
    (b"[1, 2]", 400, "object"),
    (b"null", 400, "object"),
    (b'{"prompt": [5], "temperature": NaN}', 400, "temperature"),
    (b'{"prompt": [5], "temperature": Infinity}', 400, "temperature"),
    (b"[" * 50_000, 400, "JSON"),
    (b'{"prompt": "' + b"x" * MAX_BODY_BYTES + b'"}', 413, str(MAX_BODY_BYTES)),
]


def error_of(response: httpx.Response, status: int, param: str | None, says: str) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param, error
    assert says in error["message"], error
    too_long = "maximum context length is" in error["message"]
    assert error["code"] == (
        "context_length_exceeded" if too_long else "model_not_found" if param == "model" else status
    )
    assert error["type"] == {404: "not_found_error"}.get(status, "invalid_request_error")


def name(case: tuple[Body, str, str]) -> str:
    change, param, _ = case
    return f"{param} {json.dumps(change)[:40]}"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("case", VALUES, ids=name)
async def test_a_bad_value_is_named(case: tuple[Body, str, str], path: str, cluster: Cluster) -> None:
    change, param, says = case
    body = COMPLETION if path == "/v1/completions" else {**CHAT, "max_tokens": 4}
    error_of(await cluster.client.post(path, json={**body, **change}), 400, param, says)


@pytest.mark.parametrize("case", COMPLETION_VALUES, ids=name)
async def test_a_bad_completion_value_is_named(case: tuple[Body, str, str], cluster: Cluster) -> None:
    change, param, says = case
    content = json.dumps({**COMPLETION, **change})
    error_of(await cluster.client.post("/v1/completions", content=content, headers=JSON), 400, param, says)


@pytest.mark.parametrize("case", CHAT_VALUES, ids=name)
async def test_a_bad_chat_value_is_named(case: tuple[Body, str, str], cluster: Cluster) -> None:
    change, param, says = case
    content = json.dumps({**CHAT, **change})
    error_of(await cluster.client.post("/v1/chat/completions", content=content, headers=JSON), 400, param, says)


@pytest.mark.parametrize(("content", "status", "says"), BYTES, ids=lambda v: str(v)[:30])
async def test_a_body_that_is_no_request_is_refused(content: bytes, status: int, says: str, cluster: Cluster) -> None:
    response = await cluster.client.post("/v1/completions", content=content, headers=JSON)
    param = "temperature" if says == "temperature" else None
    error_of(response, status, param, says)


@pytest.mark.parametrize(
    ("path", "status", "param"),
    [("/v1/nothing", 404, None), ("/v1/completions", 405, None), ("/health?wait_s=nan", 400, "wait_s")],
)
async def test_what_no_endpoint_answers_is_an_error_too(
    path: str, status: int, param: str | None, cluster: Cluster
) -> None:
    error_of(await cluster.client.get(path), status, param, path[1:].partition("?")[0] if param is None else "nan")


async def test_another_model_is_not_found(cluster: Cluster) -> None:
    for path, body in (("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)):
        error_of(await cluster.client.post(path, json={**body, "model": "gpt-4"}), 404, "model", "gpt-4")


async def test_an_error_before_the_first_token_is_a_plain_answer_even_if_a_stream_was_asked_for(
    cluster: Cluster,
) -> None:
    response = await cluster.client.post("/v1/completions", json={**COMPLETION, "stream": True, "top_p": 7})
    error_of(response, 400, "top_p", "7")


async def test_bad_requests_disturb_nobody_in_the_batch(cluster: Cluster) -> None:
    good = bodies(6, seed=5, prompt_tokens=(100, 300), max_tokens=(500,))
    alone = [Answer.of(await cluster.stream(body).finished()) for body in good]
    streams = [cluster.stream(body) for body in good]
    await cluster.until(lambda: any(len(stream.tokens) > 1 for stream in streams))
    contents = [json.dumps({**COMPLETION, "stream": True, **change}) for change, *_ in VALUES + COMPLETION_VALUES]
    responses = await asyncio.gather(
        *(cluster.client.post("/v1/completions", content=c, headers=JSON) for c in contents)
    )
    assert {response.status_code for response in responses} == {400}
    assert all(not stream.ended for stream in streams)
    assert [Answer.of(await stream.finished()) for stream in streams] == alone


async def test_unknown_fields_are_ignored(cluster: Cluster) -> None:
    extra: dict[str, Any] = {"user": "u", "metadata": {"a": 1}, "store": False, "no_such_field": [1]}
    response = await cluster.client.post("/v1/completions", json={**COMPLETION, **extra})
    assert response.status_code == 200
