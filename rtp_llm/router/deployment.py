"""The router as a Serve deployment: the application's ingress, in HAProxy mode reached without Serve's Python proxy."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from ray import serve
from starlette.types import ASGIApp

from rtp_llm.autoscaling.serve import replicas_of_router
from rtp_llm.config import Config
from rtp_llm.directory import DirectoryClient
from rtp_llm.errors import ConfigError
from rtp_llm.lasting_task import LastingTask
from rtp_llm.replica import prepare_replica
from rtp_llm.router.ingress import build_ingress
from rtp_llm.router.service import Service

log = logging.getLogger(__name__)

NAME = "router"
MAX_ONGOING_REQUESTS = 100_000  # admission is the dispatcher's matter (router.max_waiting)


class Router:
    """One router process. The pools are bound to it so that Serve deploys them; traffic never passes their handles."""

    async def __init__(self, sections: Mapping[str, Any], *pools: object) -> None:  # type: ignore[misc]
        self._at_stop = AsyncExitStack()  # first: Serve awaits __del__ after a constructor that failed, too
        self._is_up = False  # until Serve has asked for its health
        config = prepare_replica(sections)
        _warn_of_serves_thread()
        self._directory = DirectoryClient(config.worker.directory)
        self._service = Service(config, self._directory)
        self._at_stop.push_async_callback(self._service.close)
        self._service.start()
        member = await self._service.listen()
        registering = self._directory.keep_registered(self._service.member)
        self._registration = LastingTask(f"the registration of {member.id}", registering)
        self._at_stop.push_async_callback(self._leave)
        # What is there now stays: a full collection would look through all of it, 100 ms of the loop's time.
        gc.collect()
        gc.freeze()

    def reconfigure(self, user_config: Mapping[str, Any] | None) -> None:
        """Serve calls it once this router is made, and when the deployment's `user_config` changes: settings of the section
        `router`. What is wrong fails the deployment; but no router that runs: that one says so and goes on as it was."""
        try:
            self._service.reconfigure(user_config or {})
            log.info("settings of this router: %s", user_config)
        except ConfigError as error:
            if not self._is_up:
                raise
            log.error("user_config: %s; all settings stay as they were", error)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return build_ingress(lambda: self._service)

    def record_autoscaling_stats(self) -> dict[str, float]:
        return self._service.autoscaling_figures().recorded()

    def check_health(self) -> None:
        """Raises TaskError when a background task has ended that this router can't do without: Serve replaces the replica."""
        self._service.check_health()
        self._registration.check()
        self._is_up = True

    async def _leave(self) -> None:
        self._registration.cancel()
        await self._directory.withdraw(self._service.member())

    async def __del__(self) -> None:
        """Serve awaits this when the replica stops, after its requests have ended."""
        await self._at_stop.aclose()


def _warn_of_serves_thread() -> None:
    if os.environ.get("RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD", "1") != "0":
        log.warning(
            "Ray was started without RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD=0 (deploy/ray/environment.sh): Serve buffers "
            "without end for clients that don't read, router.client_buffer_tokens bounds nothing"
        )


def router_ingress(config: Config, pools: Sequence[serve.Application]) -> serve.Application:
    """The ingress, with the pools that the application deploys beside it."""
    return serve.deployment(
        serve.ingress()(Router),
        name=NAME,
        **replicas_of_router(config),
        max_surge_percent=config.router.max_surge_percent,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        graceful_shutdown_wait_loop_s=0.05,
        graceful_shutdown_timeout_s=config.router.request_timeout_s + 10,
        max_constructor_retry_count=1,
        ray_actor_options={
            "num_cpus": 0,
            "resources": config.router.resources,
            "label_selector": config.router.label_selector,
        },
    ).bind(config.model_dump(), *pools)
