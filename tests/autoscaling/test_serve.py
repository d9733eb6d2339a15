"""What Serve is given, and what it gets back: its own contexts, without a cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest.mock import patch

import pytest
from ray import cloudpickle
from ray.serve._private.common import DeploymentID, TimeStampedValue
from ray.serve.autoscaling_policy import _apply_autoscaling_config
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from rtp_llm.autoscaling import application
from rtp_llm.autoscaling.application import Application, application_of
from rtp_llm.autoscaling.figures import RouterFigures, WorkerFigures
from rtp_llm.autoscaling.policy import PolicySettings
from rtp_llm.autoscaling.serve import DeploymentPolicy, replicas_of, replicas_of_router
from rtp_llm.config import Config, Pool, load_config
from rtp_llm.decode.deployment import decode_pool
from rtp_llm.prefill.deployment import prefill_pool
from rtp_llm.router.deployment import router_ingress

SCALED: dict[str, Any] = {
    "prefill.autoscaling.min": 0,
    "prefill.autoscaling.max": 3,
    "prefill.autoscaling.upscale_delay_s": 1,
    "prefill.autoscaling.downscale_delay_s": 2,
    "prefill.autoscaling.downscale_to_zero_delay_s": 4,
    "decode.replicas": 2,
    "autoscaling.window_s": 7,
    "autoscaling.interval_s": 0.25,
}


def config(**overrides: Any) -> Config:
    return load_config(overrides={**SCALED, **overrides}, environ={})


@pytest.fixture(autouse=True)
def applications() -> Iterator[dict[str, Application]]:
    with patch.dict(application._applications, clear=True) as found:
        yield found


def context(
    name: str, replicas: Mapping[str, list[WorkerFigures | RouterFigures]], target: int, current: int | None = None
) -> AutoscalingContext:
    raw: dict[str, dict[str, list[TimeStampedValue]]] = {}
    for replica, samples in replicas.items():
        for at, figures in enumerate(samples):
            for metric, value in figures.recorded().items():
                raw.setdefault(metric, {}).setdefault(replica, []).append(TimeStampedValue(float(at), value))
    return AutoscalingContext(
        deployment_id=DeploymentID(name=name, app_name="demo"),
        deployment_name=name,
        app_name="demo",
        current_num_replicas=len(replicas) if current is None else current,
        target_num_replicas=target,
        running_replicas=[],
        total_num_requests=0.0,
        total_queued_requests=0.0,
        aggregated_metrics={},
        raw_metrics=lambda: raw,
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=9,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=0.0,
        config=autoscaling_config(config(), Pool.PREFILL),
    )


def autoscaling_config(config: Config, pool: Pool) -> AutoscalingConfig:
    found = replicas_of(config, pool)["autoscaling_config"]
    assert isinstance(found, AutoscalingConfig)
    return found


ROUTER = context("router", {"r": [RouterFigures(waiting=1.0, waiting_tokens=5.0)]}, target=1)
BUSY = WorkerFigures(running=1.0, queued_tokens=9.0, max_num_seqs=8.0, max_kv_tokens=100.0)


# --- What Serve is given


def test_pools_of_fixed_size_are_given_to_serve_as_ever() -> None:
    plain = load_config(overrides={"decode.replicas": 3}, environ={})
    assert replicas_of(plain, Pool.PREFILL) == {"num_replicas": 1}
    assert replicas_of(plain, Pool.DECODE) == {"num_replicas": 3}
    assert replicas_of_router(plain) == {"num_replicas": 1}
    for deploy in (prefill_pool, decode_pool, lambda config: router_ingress(config, [])):
        assert deploy(plain)._bound_deployment._deployment_config.autoscaling_config is None


def test_an_autoscaled_pools_limits_and_delays_are_serves(recwarn: pytest.WarningsRecorder) -> None:
    found = autoscaling_config(config(), Pool.PREFILL)
    assert (found.min_replicas, found.initial_replicas, found.max_replicas) == (0, 1, 3)
    assert (found.upscale_delay_s, found.downscale_delay_s, found.downscale_to_zero_delay_s) == (1, 2, 4)
    assert (found.look_back_period_s, found.metrics_interval_s) == (1, 0.25)
    assert found.policy.policy_kwargs == PolicySettings.of(config()).to_json()
    assert not recwarn.list


def test_pools_and_routers_of_fixed_size_are_read_beside_an_autoscaled_one() -> None:
    for found in (replicas_of(config(), Pool.DECODE), replicas_of_router(config(**{"router.replicas": 2}))):
        scaling = found["autoscaling_config"]
        assert scaling.min_replicas == scaling.initial_replicas == scaling.max_replicas == 2


@pytest.mark.parametrize("initial", [0, 2])
def test_a_pool_without_replicas_is_deployed(initial: int) -> None:
    deployed = prefill_pool(config(**{"prefill.autoscaling.initial": initial}))._bound_deployment
    assert deployed._deployment_config.autoscaling_config.initial_replicas == initial


# --- What it asks


def test_all_deployments_share_one_policy_however_serve_carries_it(applications: dict[str, Application]) -> None:
    """It pickles the policy's module by value, for each deployment."""
    policies = {}
    for pool in Pool:
        carried = autoscaling_config(config(), pool).policy
        policies[pool] = cloudpickle.loads(carried.get_serialized_policy_def())(**carried.policy_kwargs)
    policies[Pool.PREFILL](ROUTER)
    assert policies[Pool.DECODE](context("decode", {"a": [], "b": []}, target=2)) == (2, {})
    assert policies[Pool.PREFILL](context("prefill", {}, target=0)) == (1, {})  # for what waits in the router
    assert list(applications) == ["demo"]


def scripted(**overrides: Any) -> tuple[DeploymentPolicy, Callable[[float], None]]:
    """A policy, and what lets time pass."""
    times = [0.0]
    settings = PolicySettings.of(config(**overrides))
    application._applications["demo"] = Application(settings, clock=lambda: times[0])

    def passes(seconds: float) -> None:
        times[0] += seconds

    return DeploymentPolicy(**settings.to_json()), passes


def test_nothing_changes_before_all_deployments_are_known() -> None:
    """Serve's controller has begun anew: the pool that it asks of last has work."""
    policy, _ = scripted()
    assert policy(context("prefill", {"a": [WorkerFigures()], "b": []}, target=2)) == (2, {})
    assert policy(ROUTER) == (1, {})
    assert policy(context("decode", {"a": [], "b": []}, target=2)) == (2, {})
    assert policy(context("prefill", {"a": [WorkerFigures()], "b": []}, target=2)) == (1, {})


def test_what_waits_in_a_router_brings_back_a_pool_that_went_to_zero() -> None:
    policy, passes = scripted(**{"decode.autoscaling.max": 2, "decode.autoscaling.min": 0})
    for name in ("prefill", "decode"):
        policy(context(name, {}, target=0))
    policy(ROUTER)
    passes(0.25)
    assert [policy(context(name, {}, target=0))[0] for name in ("prefill", "decode")] == [1, 1]


def test_workers_figures_are_read_and_decided_on_once_an_interval() -> None:
    policy, passes = scripted()
    policy(context("router", {"r": [RouterFigures()]}, target=1))
    policy(context("decode", {"a": [WorkerFigures()], "b": []}, target=2))
    idle = context("prefill", {"a": [WorkerFigures()]}, target=1)
    assert policy(idle)[0] == 0
    busy = context("prefill", {"a": [WorkerFigures(), BUSY]}, target=1)
    assert policy(busy)[0] == 0  # a moment ago it was
    passes(0.25)
    assert policy(busy)[0] == 1


def test_a_workers_figures_are_kept_for_a_window_and_forgotten_with_it() -> None:
    """4,000 tokens a second at 0.5 ms each, 0.7 of the time at most."""
    policy, passes = scripted()
    policy(context("router", {"r": [RouterFigures(prefill_token_s=5e-4)]}, target=1))
    policy(context("decode", {"a": [WorkerFigures()], "b": []}, target=2))
    for replicas, expected in (
        ({"a": [WorkerFigures()]}, 0),
        ({"a": [WorkerFigures(), WorkerFigures(prompt_tokens_computed=4000.0)]}, 3),
        ({"b": [WorkerFigures()]}, 0),
    ):
        passes(0.25)
        assert policy(context("prefill", replicas, target=1))[0] == expected


def test_figures_of_unequal_times_are_none() -> None:
    """One of them has stopped coming."""
    policy, _ = scripted()
    policy(context("decode", {"a": [], "b": []}, target=2))
    torn = context("router", {"r": [RouterFigures(), RouterFigures()]}, target=1)
    assert torn.raw_metrics is not None
    torn.raw_metrics["waiting"]["r"].pop()  # type: ignore[index]
    policy(torn)
    assert policy(context("prefill", {"a": [WorkerFigures()]}, target=1))[0] == 1  # no router says anything


def test_a_redeployed_application_begins_anew() -> None:
    first = application_of("demo", PolicySettings.of(config()))
    assert application_of("demo", PolicySettings.of(config())) is first
    assert application_of("demo", PolicySettings.of(config(**{"decode.replicas": 1}))) is not first
    assert application_of("other", PolicySettings.of(config())) is not first


class Broken:
    deployment_name = "prefill"
    app_name = "demo"
    target_num_replicas = 2
    current_num_replicas = 2

    @property
    def raw_metrics(self) -> Any:
        raise RuntimeError("Serve has changed")


def test_a_policy_that_fails_leaves_the_numbers_as_they_are_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    policy, passes = scripted()
    policy(ROUTER)
    policy(context("decode", {}, target=2))
    with caplog.at_level(logging.ERROR, logger="ray.serve"):
        logging.getLogger("ray.serve").addHandler(caplog.handler)
        for _ in range(3):
            passes(1.0)
            assert policy(Broken()) == (2, {})
        logging.getLogger("ray.serve").removeHandler(caplog.handler)
    assert {record.getMessage() for record in caplog.records} == {
        "autoscaling of prefill: the number of its replicas stays"
    }
    assert len(caplog.records) == 1


def test_serve_itself_takes_a_decision_with_its_delays() -> None:
    """From zero at once, else after the delay."""
    policy = _apply_autoscaling_config(DeploymentPolicy(**PolicySettings.of(config()).to_json()))
    policy(ROUTER)
    policy(context("decode", {"a": [], "b": []}, target=2))
    assert policy(context("prefill", {}, target=0))[0] == 1
    application._applications.clear()
    policy(context("router", {"r": [RouterFigures()]}, target=1))
    policy(context("decode", {"a": [], "b": []}, target=2))
    assert policy(context("prefill", {"a": [WorkerFigures()]}, target=1))[0] == 1  # its delay isn't over
