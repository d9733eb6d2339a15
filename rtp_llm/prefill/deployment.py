"""The prefill pool: workers that compute prompts and send their KV. Its load is what waits to be computed."""

from __future__ import annotations

from collections.abc import Mapping

from ray import serve

from rtp_llm.config import Config, Pool
from rtp_llm.pool.deployment import PoolWorker, deployed


class PrefillWorker(PoolWorker):
    pool = Pool.PREFILL

    def load_signal(self, figures: Mapping[str, float]) -> Mapping[str, float]:
        return {name: figures[name] for name in ("queued_tokens", "waiting")}


def prefill_pool(config: Config) -> serve.Application:
    return deployed(config, PrefillWorker)
