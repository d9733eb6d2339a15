"""Application: one policy for all deployments of an application, in Serve's controller, which asks for each of them by itself.

Serve calls every 0.1 s and waits: nothing here blocks. Its contexts are read by attribute, so that nothing here imports Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from rtp_llm.autoscaling.figures import ApplicationFigures, PoolFigures, RouterFigures, Window, WorkerFigures
from rtp_llm.autoscaling.policy import AutoscalingPolicy, PolicySettings
from rtp_llm.config import Pool

ROUTER = "router"  # the deployment's name; a pool's is the pool's

_applications: dict[str, Application] = {}  # by name, in Serve's controller


def application_of(name: str, settings: PolicySettings) -> Application:
    """The one that all its deployments share; a new one where it was deployed anew with other settings."""
    found = _applications.get(name)
    if found is None or found.settings != settings:
        found = _applications[name] = Application(settings)
    return found


class Application:
    def __init__(self, settings: PolicySettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self._clock = clock
        self._policy = AutoscalingPolicy(settings)
        self._deployed = {ROUTER, *(pool for pool, most in settings.most.items() if most)}
        self._contexts: dict[str, Any] = {}  # by deployment: AutoscalingContext, the last one that was given
        self._windows: dict[str, dict[Any, Window]] = {}  # by pool, by replica
        self._desired: Mapping[Pool, int] = {}
        self._decided_at = float("-inf")

    def desired(self, context: Any) -> int:
        """Workers of the context's deployment. Decided anew for all of them once in `interval_s`: figures change no sooner."""
        self._contexts[context.deployment_name] = context
        if not self._deployed <= self._contexts.keys():  # Serve's controller has just begun
            return int(context.target_num_replicas)
        now = self._clock()
        if now - self._decided_at >= self.settings.interval_s:
            self._desired, self._decided_at = self._policy.desired(self._figures()), now
        if context.deployment_name == ROUTER:
            return int(context.target_num_replicas)
        return self._desired[Pool(context.deployment_name)]

    def _figures(self) -> ApplicationFigures:
        return ApplicationFigures(pools={pool: self._pool(pool.value) for pool in Pool}, routers=self._routers())

    def _pool(self, name: str) -> PoolFigures:
        context = self._contexts.get(name)
        if context is None:  # a fixed pool without workers isn't deployed
            return PoolFigures()
        before, windows = self._windows.get(name, {}), {}
        for replica, (at, values) in _said_last(context).items():
            figures = WorkerFigures.read(values)
            if figures is None:
                continue
            windows[replica] = window = before.get(replica) or Window(self.settings.window_s, at, figures)
            window.put(at, figures)
        self._windows[name] = windows
        return PoolFigures.of(
            windows.values(), running=context.current_num_replicas, target=context.target_num_replicas
        )

    def _routers(self) -> list[RouterFigures]:
        latest = (RouterFigures.read(values) for _, values in _said_last(self._contexts[ROUTER]).values())
        return [each for each in latest if each is not None]


def _said_last(context: Any) -> Mapping[Any, tuple[float, dict[str, float]]]:
    """By running replica: when, and its figures by name."""
    found: dict[Any, tuple[float, dict[str, float]]] = {}
    for name, replicas in (context.raw_metrics or {}).items():
        for replica, series in replicas.items():
            if not series:
                continue
            last = series[-1]
            at, values = found.get(replica, (float("-inf"), {}))
            if last.timestamp > at:
                at, values = found[replica] = last.timestamp, {}
            if last.timestamp == at:
                values[name] = last.value
    return found
