"""How a deployment is given to Serve where pools are autoscaled.

Serve pickles the module of a policy by value, so what deployments share lies in another one (application.py). It also knows a
policy of a whole application, but only where a file declares it: a driver's serve.run() can't give one, and a file without it
would be scaled by requests to handles, of which there are none.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from rtp_llm.autoscaling.application import application_of
from rtp_llm.autoscaling.policy import PolicySettings
from rtp_llm.config import Config, Pool, PoolSizes

LOOKED_BACK = 4  # intervals that Serve keeps: only the last figures are read, the window is ours

log = logging.getLogger("ray.serve")


class DeploymentPolicy:
    """What Serve calls for one deployment, every 0.1 s. It never raises: the application would be deploying for ever."""

    def __init__(self, **settings: Any) -> None:
        self._settings = PolicySettings(**settings)
        self._said = ""

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        try:
            return application_of(context.app_name, self._settings).desired(context), {}
        except Exception as error:
            if repr(error) != self._said:  # once, not ten times a second
                self._said = repr(error)
                log.exception("autoscaling of %s: the number of its replicas stays", context.deployment_name)
            return context.target_num_replicas, {}


def replicas_of(config: Config, pool: Pool) -> Mapping[str, Any]:
    """Serve's options of the pool's deployment that say how many replicas it has."""
    return _replicas(config, config.sizes_of(pool), config.autoscaling_of(pool).model_dump(include=set(DELAYS)))


def replicas_of_router(config: Config) -> Mapping[str, Any]:
    """Of the router's: their number is fixed, but their figures are read where pools are autoscaled."""
    number = config.router.replicas
    return _replicas(config, PoolSizes(number, number, number), {})


DELAYS = ("upscale_delay_s", "downscale_delay_s", "downscale_to_zero_delay_s")


def _replicas(config: Config, sizes: PoolSizes, delays: Mapping[str, float]) -> Mapping[str, Any]:
    if not config.is_autoscaled:
        return {"num_replicas": sizes.most}
    with warnings.catch_warnings():
        # Serve would have the interval in the environment of each of its processes, where no file of an application reaches.
        warnings.simplefilter("ignore", DeprecationWarning)
        autoscaling = AutoscalingConfig(
            min_replicas=sizes.least,
            initial_replicas=sizes.initial,
            max_replicas=sizes.most,
            look_back_period_s=LOOKED_BACK * config.autoscaling.interval_s,
            metrics_interval_s=config.autoscaling.interval_s,
            policy=AutoscalingPolicy(
                policy_function=f"{DeploymentPolicy.__module__}:{DeploymentPolicy.__name__}",
                policy_kwargs=PolicySettings.of(config).to_json(),
            ),
            **delays,
        )
    return {"autoscaling_config": autoscaling}
