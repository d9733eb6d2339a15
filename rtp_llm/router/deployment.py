"""The router as a Serve deployment: the application's ingress, in HAProxy mode reached without Serve's Python proxy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray import serve

from rtp_llm.config import Config
from rtp_llm.directory import DirectoryClient
from rtp_llm.router.ingress import build_ingress
from rtp_llm.router.service import Service

MAX_ONGOING_REQUESTS = 100_000  # admission is the dispatcher's matter (router.max_waiting)

_service: Service | None = None


def _current_service() -> Service:
    if _service is None:
        raise RuntimeError("the router's service is not started in this process")
    return _service


app = build_ingress(_current_service)


@serve.deployment(name="router")
@serve.ingress(app)
class Router:
    """One router process. The pools are bound to it so that Serve deploys them; traffic never passes their handles."""

    async def __init__(self, sections: Mapping[str, Any], *pools: object) -> None:  # type: ignore[misc]
        global _service
        config = Config.model_validate(sections)
        _service = Service(config, DirectoryClient(config.directory_name))
        _service.start()

    async def __del__(self) -> None:
        """Serve awaits this when the replica stops, after its requests have ended."""
        if _service is not None:
            await _service.close()


def router_ingress(config: Config, pools: Sequence[serve.Application]) -> serve.Application:
    """The ingress, with the pools that the application deploys beside it."""
    return Router.options(  # type: ignore[attr-defined]
        num_replicas=config.router.replicas,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        graceful_shutdown_wait_loop_s=0.05,
        graceful_shutdown_timeout_s=config.router.request_timeout_s,
        ray_actor_options={"num_cpus": 0},
    ).bind(config.model_dump(), *pools)
