"""The decode pool: workers that receive KV and stream tokens."""

from __future__ import annotations

from ray import serve

from rtp_llm.config import Config, Pool
from rtp_llm.pool.deployment import PoolWorker, deployed


class DecodeWorker(PoolWorker):
    pool = Pool.DECODE


def decode_pool(config: Config) -> serve.Application:
    return deployed(config, DecodeWorker)
