"""The decode pool as a Serve deployment: workers that receive KV and stream tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

from ray import serve

from rtp_llm.config import Config
from rtp_llm.directory import DirectoryClient, Member
from rtp_llm.replica import prepare_replica
from rtp_llm.worker.worker import Worker

POOL = "decode"
CONSTRUCTOR_RETRIES = 2  # a model that can't be served fails the deployment instead of being loaded for ever


class DecodeWorker:
    """One replica = one process with one worker. Routers reach it by its own gRPC server; Serve owns its life."""

    async def __init__(self, sections: Mapping[str, Any]) -> None:  # type: ignore[misc]
        self._at_stop = AsyncExitStack()  # first: Serve awaits __del__ after a constructor that failed, too
        config = prepare_replica(sections)
        replica = serve.get_replica_context().replica_id.unique_id
        self._worker = await Worker.load(config, POOL, f"{POOL}-{replica}")
        self._at_stop.push_async_callback(self._worker.stop)
        await self._worker.start()
        key = self._worker.key
        self._member = Member(id=key.id, epoch=key.epoch, pool=POOL, address=self._worker.address)
        self._directory = DirectoryClient(config.worker.directory)
        self._registration = asyncio.ensure_future(self._directory.keep_registered(self._member))
        self._at_stop.push_async_callback(self._leave)

    def check_health(self) -> None:
        """Raises EngineError when an engine or transfer thread has ended: Serve replaces the replica."""
        self._worker.check_health()

    def record_autoscaling_stats(self) -> dict[str, float]:
        return self._worker.autoscaling_figures()

    async def __del__(self) -> None:
        """Serve awaits this as soon as the replica is to stop; its gRPC server goes on meanwhile."""
        await self._at_stop.aclose()

    async def _leave(self) -> None:
        self._registration.cancel()
        await self._directory.withdraw(self._member)
        await self._worker.drain()


def decode_pool(config: Config) -> serve.Application:
    """The deployment with `config.decode` replicas."""
    pool = config.decode
    return serve.deployment(
        DecodeWorker,
        name=POOL,
        num_replicas=pool.replicas,
        max_constructor_retry_count=CONSTRUCTOR_RETRIES,
        graceful_shutdown_wait_loop_s=0.05,
        graceful_shutdown_timeout_s=config.worker.drain_timeout_s + 10,
        health_check_period_s=2,
        health_check_timeout_s=30,
        ray_actor_options={"num_cpus": pool.num_cpus, "resources": pool.resources},
    ).bind(config.model_dump())
