"""A pool of workers as a Serve deployment: one replica is one process with one worker."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from math import ceil
from typing import Any, ClassVar

import ray
from ray import serve

from rtp_llm.autoscaling.serve import replicas_of
from rtp_llm.config import Config, Pool
from rtp_llm.directory import DirectoryClient, Member
from rtp_llm.lasting_task import LastingTask
from rtp_llm.replica import prepare_replica
from rtp_llm.worker.worker import Worker

CONSTRUCTOR_RETRIES = 2  # a model that can't be served fails the deployment instead of being loaded for ever


class PoolWorker:
    """One replica = one process with one worker. Routers reach it by its own gRPC server; Serve owns its life. A pool's own
    class names the pool."""

    pool: ClassVar[Pool]

    async def __init__(self, sections: Mapping[str, Any]) -> None:  # type: ignore[misc]
        self._at_stop = AsyncExitStack()  # first: Serve awaits __del__ after a constructor that failed, too
        config = prepare_replica(sections)
        name = f"{self.pool}-{serve.get_replica_context().replica_id.unique_id}"
        self._directory = DirectoryClient(config.worker.directory)
        self._worker = await Worker.load(
            config,
            self.pool,
            name,
            workers_here=workers_on(config, _this_node()),
            state=await self._directory.newest_state(config.model.path),
        )
        self._at_stop.callback(self._end_by_force)
        self._at_stop.push_async_callback(self._worker.stop)
        await self._worker.start()
        registering = self._directory.keep_registered(self._member, self._worker.control.heard)
        self._registration = LastingTask(f"the registration of {self._worker.key}", registering)
        self._at_stop.push_async_callback(self._leave)

    def _member(self) -> Member:
        """As it is now."""
        worker, key = self._worker, self._worker.key
        return Member(
            id=key.id, epoch=key.epoch, pool=str(self.pool), address=worker.address, state=worker.control.state
        )

    def check_health(self) -> None:
        """Raises when an engine or transfer thread has ended or stands still, or nobody could find this worker: Serve replaces
        the replica."""
        self._worker.check_health()
        self._registration.check()

    def record_autoscaling_stats(self) -> dict[str, float]:
        return self._worker.autoscaling_figures().recorded()

    async def __del__(self) -> None:
        """Serve awaits this as soon as the replica is to stop; its gRPC server goes on meanwhile."""
        await self._at_stop.aclose()

    def _end_by_force(self) -> None:
        if self._worker.must_be_killed:
            os._exit(1)

    async def _leave(self) -> None:
        self._registration.cancel()
        await self._directory.withdraw(self._member())
        await self._worker.drain()


def deployed(config: Config, worker: type[PoolWorker]) -> serve.Application:
    """The deployment with as many replicas as the pool's settings say, or its autoscaling."""
    settings = config.pool(worker.pool)
    return serve.deployment(
        worker,
        name=worker.pool.value,
        **replicas_of(config, worker.pool),
        max_surge_percent=settings.max_surge_percent,
        max_constructor_retry_count=CONSTRUCTOR_RETRIES,
        graceful_shutdown_wait_loop_s=0.05,
        graceful_shutdown_timeout_s=config.worker.drain_timeout_s + 10,
        health_check_period_s=2,
        health_check_timeout_s=30,
        ray_actor_options={
            "num_cpus": settings.num_cpus,
            "num_gpus": config.num_gpus_of(worker.pool),
            "resources": settings.resources,
            "label_selector": settings.label_selector,
        },
    ).bind(config.model_dump())


def workers_on(config: Config, node: Mapping[str, Any]) -> int:
    """How many workers may start on this node of ray.nodes(): those of each pool, but no more than it has room for."""
    return max(sum(_fitting(config, pool, node) for pool in Pool), 1)


def _fitting(config: Config, pool: Pool, node: Mapping[str, Any]) -> int:
    settings = config.pool(pool)
    if not all(_selects(wanted, node["Labels"].get(name)) for name, wanted in settings.label_selector.items()):
        return 0
    needs = {"CPU": settings.num_cpus, "GPU": config.num_gpus_of(pool), **settings.resources}
    room = (int(node["Resources"].get(name, 0.0) / need) for name, need in needs.items() if need > 0)
    return min([ceil(config.sizes_of(pool).most * (1 + settings.max_surge_percent / 100)), *room])


def _selects(wanted: str, label: str | None) -> bool:
    """Ray's words of a label selector: `a`, `!a`, `in(a,b)`, `!in(a,b)`."""
    negated, values = wanted.startswith("!"), wanted.removeprefix("!")
    listed = values[3:-1].split(",") if values.startswith("in(") else [values]
    return (label in [value.strip() for value in listed]) != negated


def _this_node() -> Mapping[str, Any]:
    here = ray.get_runtime_context().get_node_id()
    [node] = [node for node in ray.nodes() if node["NodeID"] == here]
    found: Mapping[str, Any] = node
    return found
