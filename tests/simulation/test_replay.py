"""Autoscaled pools in simulated time: the real policy, Serve's delays, workers that start, drain and leave."""

from __future__ import annotations

import random
from typing import Any

import pytest
from ray.serve.autoscaling_policy import _apply_delay_logic
from ray.serve.config import AutoscalingConfig

from rtp_llm.config import Config, Pool, PoolAutoscalingSettings, load_config
from rtp_llm.load.workload import Traced
from rtp_llm.router.placement import DECODE, PREFILL
from rtp_llm.router.placement.least_loaded import LeastLoaded
from rtp_llm.simulation.clock import Clock
from rtp_llm.simulation.cluster import SimulatedCluster
from rtp_llm.simulation.machines import H200
from rtp_llm.simulation.replay import Moment, fixed_sizes, replay
from rtp_llm.simulation.serve_delays import ServeDelays
from tests.simulation.test_simulation import ENGINE, request

P, D = Pool.PREFILL, Pool.DECODE


@pytest.mark.parametrize("seed", range(20))
def test_delays_are_serves(seed: int) -> None:
    draw = random.Random(seed)
    delays = {
        name: draw.choice([0.0, 0.3, 1.0])
        for name in ("upscale_delay_s", "downscale_delay_s", "downscale_to_zero_delay_s")
    }
    ours = ServeDelays(PoolAutoscalingSettings(min=0, max=5, **delays))  # type: ignore[arg-type]
    serves = AutoscalingConfig(min_replicas=0, max_replicas=5, **delays)
    state: dict[str, Any] = {}
    target, running, desired = 1, 1, 1
    for tick in range(1000):
        now = tick * 0.1
        if draw.random() < 0.2:
            desired = draw.randint(0, 5)
        expected = desired
        if running > 0 or desired == 0:
            expected, state = _apply_delay_logic(desired, target, serves, state, _now=now)
        assert ours.target(desired, running=running, target=target, now=now) == expected, (tick, desired)
        target = expected
        running = min(running, target) if draw.random() < 0.5 else target


# --- Workers that come and go


def test_who_drains_finishes_what_it_has_and_gets_nothing_new() -> None:
    clock = Clock()
    left: list[tuple[str, float]] = []
    cluster = SimulatedCluster(LeastLoaded(), {"p": PREFILL, "d": DECODE}, ENGINE, clock)
    cluster.left = lambda id: left.append((id, clock.now))
    before, after = request(0, 0.0, output=400), request(1, 1.0)
    cluster.ask([before, after])
    clock.at(0.5, lambda: cluster.add("e", DECODE))
    clock.at(0.5, lambda: cluster.drain("d"))
    clock.run(until=1.1)
    assert after.is_finished and not before.is_finished and not left
    clock.run()
    assert before.last_token is not None and left == [("d", pytest.approx(before.last_token, abs=0.001))]
    assert cluster.workers.keys() == cluster.snapshot.keys() == {"p", "e"}


def test_requests_wait_for_the_first_worker() -> None:
    clock = Clock()
    cluster = SimulatedCluster(LeastLoaded(), {}, ENGINE, clock)
    cluster.ask([request()])
    clock.at(3.0, lambda: cluster.add("p", PREFILL))
    clock.run()
    [asked] = cluster.requests
    assert asked.is_finished and asked.ttft > 3.0


# --- Traces


def config(**overrides: object) -> Config:
    return load_config(
        overrides={
            "router.ttft_target_ms": 2000,
            "engine.device": "cuda",
            "prefill.autoscaling": {"min": 1, "max": 4, "downscale_delay_s": 10},
            "decode.autoscaling": {"min": 1, "max": 4, "downscale_delay_s": 10},
            **overrides,
        },
        environ={},
    )


def trace(*parts: tuple[float, float], prompt: int, output: int) -> list[Traced]:
    """(seconds, requests a second) each."""
    due, found = 0.0, list[Traced]()
    for seconds, rate in parts:
        end = due + seconds
        while due < end:
            found.append(Traced(len(found), due, prompt, output, ()))
            due += 1 / rate
    return found


def sizes(moments: list[Moment], pool: Pool) -> list[int]:
    """Without repeats."""
    found = [each.running[pool] for each in moments]
    return [size for i, size in enumerate(found) if i == 0 or size != found[i - 1]]


def test_prefill_follows_its_load_while_decode_stays() -> None:
    """8,192 tokens take 0.23 s: 10 a second are 2.3 workers' work."""
    load = trace((20, 1), (60, 10), (60, 1), prompt=8192, output=8)
    found = replay(load, config(), H200, start_s=5.0)
    seen = sizes(list(found.moments), P)
    assert (seen[0], max(seen), seen[-1]) == (1, 4, 1)
    assert sizes(list(found.moments), D) == [1]
    assert found.attainment(found.requests[-50:]) == 1.0
    assert found.worker_seconds[D] == pytest.approx(found.seconds)
    assert found.seconds < found.worker_seconds[P] < 4 * found.seconds


def test_decode_follows_its_load_while_prefill_stays() -> None:
    """Sequences of a second or two: 256 run on a worker at most, 0.8 of them by the target."""
    load = trace((20, 10), (60, 200), (60, 10), prompt=64, output=300)
    found = replay(load, config(), H200, start_s=5.0)
    seen = sizes(list(found.moments), D)
    assert (seen[0], seen[-1]) == (1, 1) and max(seen) > 2
    assert sizes(list(found.moments), P) == [1]


def test_from_zero_to_zero() -> None:
    pools = {"min": 0, "max": 2, "initial": 0, "downscale_to_zero_delay_s": 5}
    load = trace((0.5, 1), prompt=100, output=20) + [Traced(1, 60.0, 100, 20, ())]
    found = replay(load, config(**{"prefill.autoscaling": pools, "decode.autoscaling": pools}), H200, start_s=3.0)
    assert all(each.is_finished and 3.0 < each.ttft < 4.0 for each in found.requests)
    for pool in Pool:
        assert sizes(list(found.moments), pool)[:4] == [0, 1, 0, 1]
        assert 0 < found.worker_seconds[pool] < 40


def test_fixed_sizes_are_all_within_the_limits_and_stay() -> None:
    found = {tuple(sizes.values()): fixed for sizes, fixed in fixed_sizes(config())}
    assert found.keys() == {(p, d) for p in range(1, 5) for d in range(1, 5)}
    replayed = replay(trace((5, 20), prompt=8192, output=8), found[2, 1], H200, start_s=5.0)
    assert (sizes(list(replayed.moments), P), sizes(list(replayed.moments), D)) == ([2], [1])
