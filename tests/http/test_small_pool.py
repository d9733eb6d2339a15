"""Workers whose KV pools hold less than the model's context: what clients send by default is answered."""

from __future__ import annotations

from pathlib import Path

from rtp_llm.model.config import read_model_config
from tests.cluster.cluster import Cluster

CHAT = "/v1/chat/completions"
QUESTION = {"messages": [{"role": "user", "content": "What is 23 + 58?"}]}
POOL_TOKENS = 128


async def test_a_chat_without_max_tokens_is_answered_within_the_pool(tmp_path: Path) -> None:
    settings = {"engine.kv_cache_bytes": 0, "engine.num_kv_blocks": POOL_TOKENS // 16}
    async with Cluster.running(log_dir=tmp_path, settings=settings) as cluster:
        assert read_model_config(cluster.config.model.path).max_position_embeddings > POOL_TOKENS
        [model] = (await cluster.client.get("/v1/models")).json()["data"]
        assert model["max_model_len"] == POOL_TOKENS

        answer = await cluster.client.post(CHAT, json={**QUESTION, "temperature": 0})
        assert answer.status_code == 200, answer.text
        [choice] = answer.json()["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("23 + 58 = 81.", "stop")

        endless = await cluster.client.post(CHAT, json={**QUESTION, "ignore_eos": True})
        assert endless.json()["choices"][0]["finish_reason"] == "length", endless.text
        assert endless.json()["usage"]["total_tokens"] == POOL_TOKENS

        refused = await cluster.client.post(CHAT, json={**QUESTION, "max_tokens": POOL_TOKENS})
        error = refused.json()["error"]
        assert (refused.status_code, error["param"]) == (400, "max_tokens")
        assert f"the {POOL_TOKENS} tokens that the workers' KV pools hold" in error["message"]
        await cluster.at_rest()
