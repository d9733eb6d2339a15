"""The decode pool: workers that receive KV and stream tokens. Its load is what runs, and the KV that it holds."""

from __future__ import annotations

from collections.abc import Mapping

from ray import serve

from rtp_llm.config import Config, Pool
from rtp_llm.pool.deployment import PoolWorker, deployed


class DecodeWorker(PoolWorker):
    pool = Pool.DECODE

    def load_signal(self, figures: Mapping[str, float]) -> Mapping[str, float]:
        return {name: figures[name] for name in ("running", "waiting", "kv_usage")}


def decode_pool(config: Config) -> serve.Application:
    return deployed(config, DecodeWorker)
