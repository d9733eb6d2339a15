"""A stream of three minutes while all that serves it is replaced, twice, and others ask."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from rtp_llm.config import DEMO_MODEL
from tests.serve.deployment import Deployment, alive, wait_for
from tests.serve.redeploy import redeploy
from tests.serve.streams import Streams, answers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STREAM_S = 180.0
NAMES = ("router", "prefill", "decode")
COMPARED = 500  # tokens, with those of an undisturbed answer
# A step takes some ten milliseconds, so that an answer of a context's length lasts.
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 2560,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 65536,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "eos_token_id": 2,
}
BODY = {"prompt": [5, 6, 7, 8] * 20, "ignore_eos": True, "temperature": 0.8, "seed": 11}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(DEMO_MODEL) / name, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


@pytest.fixture
def deployed(model: Path) -> Iterator[Deployment]:
    found = Deployment("--model.path", str(model), "--model.load-format", "dummy", "--model.served-name", "demo")
    yield found
    assert found.stop() == 0, "\n".join(found.lines)


async def test_a_stream_of_three_minutes_outlives_two_updates_of_all(deployed: Deployment, model: Path) -> None:
    arguments = {"model": {"path": str(model), "load_format": "dummy", "served_name": "demo"}}
    await asyncio.to_thread(redeploy, deployed, arguments)  # by a file, as the next: with one token
    [undisturbed] = await answers(deployed.url, [BODY | {"max_tokens": COMPARED}])
    async with Streams(deployed.url, [BODY | {"max_tokens": 60_000}]) as streams:
        [stream] = streams.streams
        begin = time.monotonic()
        await streams.reached(20)
        replaced = {}
        asking = asyncio.ensure_future(short_answers(deployed.url, begin + STREAM_S))
        for limit, at_s in ((63, 10.0), (62, 70.0)):
            await asyncio.sleep(max(0.0, begin + at_s - time.monotonic()))
            replaced |= {pid: "ray::ServeReplica" for name in NAMES for pid in deployed.replicas(name)}
            surge = {pool: {"max_surge_percent": 100} for pool in ("prefill", "decode")}
            update = arguments | surge | {"engine": {"max_num_seqs": limit}}
            await asyncio.to_thread(redeploy, deployed, update, waits=False)
        assert await asking > STREAM_S / 10
        assert stream.finish is None and stream.error is None
        seen = len(stream.tokens)
        await streams.reached(seen + 20)  # it goes on
        assert stream.tokens[:COMPARED] == undisturbed
    await asyncio.to_thread(wait_for, lambda: alive(replaced) == {}, 120)


async def short_answers(url: str, until: float) -> int:
    """How many came, all of them right, one after the other."""
    count = 0
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        while time.monotonic() < until:
            answer = await client.post("/v1/completions", json={"prompt": [5, 6, 7], "max_tokens": 2})
            assert answer.status_code == 200, answer.text
            count += 1
            await asyncio.sleep(0.5)
    return count
