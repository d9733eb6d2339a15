"""The product simulator: the real policies over workers whose steps take what they are said to."""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest

from rtp_llm.router.placement import FleetEvent, HandoverMeasured
from rtp_llm.router.placement.cost import Cost
from rtp_llm.router.placement.least_loaded import LeastLoaded
from rtp_llm.router.placement.round_robin import RoundRobin
from rtp_llm.router.placement.step_cost import Step, StepCost
from rtp_llm.simulation.clock import Clock
from rtp_llm.simulation.cluster import LATENCY_S, SimulatedCluster
from rtp_llm.simulation.grid import Draws, Machine, Point, Workload
from rtp_llm.simulation.machines import CPU, H200
from rtp_llm.simulation.request import SimulatedRequest
from rtp_llm.simulation.worker import Engine

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
COST = StepCost(base_s=0.004, sequence_s=1e-4, context_s=0.0, row_s=1e-5, pair_s=0.0)
ENGINE = Engine(cost=COST, kv_tokens=100_000, kv_bytes_per_token=1000.0, wire_bytes_per_s=1e9)


def request(number: int = 0, arrival: float = 0.0, prompt: int = 1000, output: int = 5) -> SimulatedRequest:
    return SimulatedRequest(number=number, arrival=arrival, prompt_tokens=prompt, output_tokens=output)


def run(pools: dict[str, str], requests: list[SimulatedRequest], engine: Engine = ENGINE) -> SimulatedCluster:
    clock = Clock()
    cluster = SimulatedCluster(LeastLoaded(), pools, engine, clock)
    cluster.ask(requests)
    clock.run()
    assert all(each.is_finished for each in requests)
    return cluster


def test_events_happen_in_order_and_those_of_one_time_as_asked() -> None:
    clock, happened = Clock(), list[str]()
    clock.after(2.0, lambda: happened.append("c"))
    clock.after(1.0, lambda: clock.after(0.0, lambda: happened.append("b")))
    clock.after(1.0, lambda: happened.append("a"))
    clock.run(until=1.5)
    assert happened == ["a", "b"] and clock.now == 1.0
    clock.run()
    assert happened == ["a", "b", "c"]


def test_a_lone_request_takes_its_prompts_step_and_one_decode_step_a_token() -> None:
    alone = request()
    run({"w": "prefill"}, [alone])
    assert alone.ttft == pytest.approx(0.010 + 2 * LATENCY_S)  # submitted, computed, told
    assert alone.itl == pytest.approx(0.0041)


def test_a_handover_adds_the_wire_to_the_second_token_alone() -> None:
    handed = request()
    run({"p": "prefill", "d": "decode"}, [handed])
    assert handed.ttft == pytest.approx(0.010 + 2 * LATENCY_S)
    wire = 1000 * 1000.0 / 1e9 / 9  # the last message: what came before went out beside the computation
    assert handed.itl * 4 == pytest.approx(4 * 0.0041 + wire + 2 * LATENCY_S)


def test_a_wire_slower_than_the_computation_holds_the_second_token_up() -> None:
    handed = request()
    run({"p": "prefill", "d": "decode"}, [handed], replace(ENGINE, wire_bytes_per_s=1e7))
    assert handed.itl * 4 > 0.1 - 0.0105  # 1 MB at 10 MB/s, less what went out during the prefill


def test_prefill_beside_decodes_gets_what_the_target_leaves() -> None:
    first, second = request(output=200), request(1, arrival=0.1, prompt=8000)
    run({"w": "prefill"}, [first, second], replace(ENGINE, itl_target_s=0.01))
    assert second.ttft > 8000 / 590 * 0.0059  # about 590 rows a step, not 8,000
    assert first.itl < 0.01


def test_what_finds_no_room_waits_for_it() -> None:
    requests = [request(number) for number in range(3)]
    run({"w": "prefill"}, requests, replace(ENGINE, kv_tokens=1010))
    ends = [each.last_token or 0.0 for each in requests]
    assert all(later.first_token > end for later, end in zip(requests[1:], ends, strict=False))  # type: ignore[operator]


def test_a_decode_worker_without_room_grants_when_a_sequence_has_ended() -> None:
    requests = [request(number) for number in range(3)]
    cluster = run({"p": "prefill", "d": "decode"}, requests, replace(ENGINE, kv_tokens=2100))
    assert cluster.workers["d"].load().free_blocks == cluster.workers["d"].load().total_blocks


def test_nothing_is_left_in_a_fleet_at_rest() -> None:
    requests = [
        request(number, arrival=0.002 * number, prompt=64 + number, output=1 + number % 40) for number in range(200)
    ]
    cluster = run({"p0": "prefill", "p1": "prefill", "d0": "decode", "d1": "decode"}, requests)
    for worker in cluster.workers.values():
        load = worker.load()
        assert (load.queued_tokens, load.running, load.waiting) == (0, 0, 0)
        assert load.free_blocks == load.total_blocks
    assert all(view.sequences == 0 for view in cluster.snapshot.values())


def test_a_run_is_its_seed() -> None:
    workload = Workload(H200, 512, 32)

    def outcome(seed: int) -> list[tuple[float | None, float | None]]:
        cluster = workload.run(Cost(ttft_target_s=0.04, itl_target_s=0.008), 4, 300.0, seed, 1.0)
        return [(each.first_token, each.last_token) for each in cluster.requests]

    assert outcome(1) == outcome(1) != outcome(2)


def test_the_goal_is_so_many_times_what_an_idle_worker_takes() -> None:
    goal = Workload(H200, 2048, 256).goal
    ttft, itl = goal.targets(request(prompt=2048, output=256))
    assert ttft == 3 * H200.cost.seconds(Step.of_prompt(2048))
    assert itl == 2 * H200.cost.decode_s(1, 2048 + 128)
    met = request(prompt=2048, output=256)
    met.first_token, met.last_token = ttft, ttft + 255 * itl
    assert goal.is_met(met)
    met.last_token += 0.1
    assert not goal.is_met(met)


@pytest.mark.parametrize(("prompt", "output", "load"), [(512, 32, 0.95), (2048, 256, 0.7)])
def test_cost_is_no_worse_than_an_undivided_fleet_nor_than_a_split(prompt: int, output: int, load: float) -> None:
    workload = Workload(H200, prompt, output)
    point = workload.point(load, load * workload.saturated_rate(), Draws(2, 2))
    assert point.ratio >= 0.98


def test_the_interval_of_a_ratio_is_students_over_the_draws() -> None:
    point = Point(64, 32, 0.7, 10.0, undivided=0.8, split=0.5, num_prefill=4, cost=0.9, gains=(0.05, 0.1, 0.15))
    assert point.ratio == pytest.approx(1.125)
    within = 4.303 * 0.05 / 3**0.5 / 0.8  # t of two degrees of freedom, the gains' deviation is 0.05
    assert point.interval == pytest.approx((1.125 - within, 1.125 + within))
    nothing = replace(point, undivided=0.0, split=0.0)
    assert nothing.interval == (nothing.ratio, nothing.ratio) == (math.inf, math.inf)
    assert replace(nothing, cost=0.0).ratio == 1.0


def test_cost_refuses_what_can_not_meet_its_goal_and_the_rest_meets_it() -> None:
    workload = Workload(H200, 512, 32)
    rate = 1.3 * workload.saturated_rate()
    cost = workload.run(Cost(ttft_target_s=0.04, itl_target_s=0.008), 4, rate, 1, 1.0)
    fixed = workload.run(RoundRobin(), 8, rate, 1, 1.0)
    refused = sum(each.refused for each in cost.requests) / len(cost.requests)
    assert 0.1 < refused < 0.5
    assert workload.goal.goodput(cost.requests) > 3 * workload.goal.goodput(fixed.requests)


def test_cost_avoids_a_pair_whose_wire_is_slow_and_uses_it_again_when_that_is_fast() -> None:
    engine = replace(Workload(H200, 2048, 256).engine, itl_target_s=0.0085)
    clock, draw = Clock(), random.Random(1)
    policy = Cost(ttft_target_s=0.15, itl_target_s=0.0085, known=H200.cost)
    cluster = SimulatedCluster(policy, {"p0": "prefill", "p1": "prefill"}, engine, clock)
    for name in ("d0", "d1"):
        cluster.add(name, "decode", replace(engine, max_queued_tokens=0))  # it runs no prompts
    arrivals = list(accumulate(draw.expovariate(25.0) for _ in range(1000)))
    cluster.ask([request(number, at, 2048, 256) for number, at in enumerate(arrivals)])
    cluster.links["p0", "d0"] = 5e8
    clock.at(15.0, lambda: cluster.links.pop(("p0", "d0")))
    handovers: list[tuple[float, str, str]] = []
    observe = policy.observe

    def watched(events: Sequence[FleetEvent]) -> None:
        handovers.extend((each.at, each.sender, each.receiver) for each in events if isinstance(each, HandoverMeasured))
        observe(events)

    policy.observe = watched  # type: ignore[method-assign]
    clock.run()

    def share(begin: float, end: float) -> float:
        pairs = [pair for at, *pair in handovers if begin <= at < end]
        return pairs.count(["p0", "d0"]) / len(pairs)

    assert share(1.0, 15.0) < 0.05
    assert share(27.0, 40.0) > 0.15


def test_machines_are_named_with_what_was_measured() -> None:
    for row in map(json.loads, (RESULTS / "cpu_engine.jsonl").read_text().splitlines()):
        if "decode" in row:
            measured, predicted = row["step_ms"], CPU.cost.decode_s(row["decode"], row["decode"] * row["context"])
            assert predicted == pytest.approx(measured / 1e3, rel=0.07)
        elif "prefill" in row:
            predicted = CPU.cost.seconds(Step.of_prompt(row["prefill"]))
            assert predicted == pytest.approx(row["median_ms"] / 1e3, rel=0.05)
    assert isinstance(H200, Machine) and H200.cost.decode_s(1, 1100) == pytest.approx(3.88e-3, rel=0.02)
    for tokens, seconds in ((512, 12.1e-3), (2048, 48.65e-3), (8192, 226.7e-3)):
        assert H200.cost.seconds(Step.of_prompt(tokens)) == pytest.approx(seconds, rel=0.03)
    for rows, seconds in ((8, 4.25e-3), (32, 5.88e-3), (64, 7.31e-3), (128, 10.5e-3), (256, 17.46e-3)):
        assert H200.cost.decode_s(rows, 1090 * rows) == pytest.approx(seconds, rel=0.1)
