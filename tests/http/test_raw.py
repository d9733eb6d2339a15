"""RTP-LLM's raw requests against a running cluster: the texts are those of /v1/completions, lengths and places the workers'."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from tests.cluster.cluster import Cluster

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = "The quick brown fox jumps over the lazy dog. " * 8
CONFIG = {"max_new_tokens": 12, "do_sample": False, "skip_special_tokens": True}


async def raw(cluster: Cluster, path: str = "/", **body: Any) -> dict[str, Any]:
    response = await cluster.client.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def completion(cluster: Cluster, prompt: str) -> str:
    body = {"prompt": prompt, "max_tokens": 12, "temperature": 0}
    return str((await cluster.client.post("/v1/completions", json=body)).json()["choices"][0]["text"])


async def test_a_text_gets_what_a_completion_gets(cluster: Cluster) -> None:
    wanted = await completion(cluster, PROMPT)
    answer = await raw(cluster, prompt=PROMPT, generate_config=CONFIG)
    assert (answer["response"], answer["finished"]) == (wanted, True)
    aux = answer["aux_info"]
    assert aux["pd_sep"] and 0 < aux["reuse_len"] < aux["input_len"]
    assert aux["cost_time"] > aux["first_token_cost_time"] > 0
    afresh = await raw(cluster, prompt=PROMPT, generate_config={**CONFIG, "reuse_cache": False})
    assert (afresh["response"], afresh["aux_info"]["reuse_len"]) == (wanted, 0)


async def test_a_batch_gets_what_each_of_its_prompts_gets(cluster: Cluster) -> None:
    prompts = [PROMPT, "What is 23 + 58?"]
    wanted = [await completion(cluster, each) for each in prompts]
    batch = await raw(cluster, "/batch_infer", prompt_batch=prompts, generate_config=CONFIG)
    assert [each["response"] for each in batch["response_batch"]] == wanted
    twice = await raw(cluster, prompt=PROMPT, generate_config={**CONFIG, "num_return_sequences": 2})
    assert twice["response"] == [wanted[0]] * 2


async def test_a_stream_ends_with_the_whole_answer(cluster: Cluster) -> None:
    wanted = await completion(cluster, PROMPT)
    body = {"prompt": PROMPT, "yield_generator": True, "generate_config": CONFIG}
    async with cluster.client.stream("POST", "/", json=body) as response:
        lines = [line async for line in response.aiter_lines() if line and not line.startswith(":")]
    assert lines.pop() == "data:[done]"
    events = [json.loads(line.removeprefix("data:")) for line in lines]
    assert (events[-1]["response"], events[-1]["finished"]) == (wanted, True)
    for event, later in pairwise(events):  # how many there are is a matter of speed
        assert later["response"].startswith(event["response"]) and not event["finished"]
