"""The prefill pool: workers that compute prompts and send their KV."""

from __future__ import annotations

from ray import serve

from rtp_llm.config import Config, Pool
from rtp_llm.pool.deployment import PoolWorker, deployed


class PrefillWorker(PoolWorker):
    pool = Pool.PREFILL


def prefill_pool(config: Config) -> serve.Application:
    return deployed(config, PrefillWorker)
