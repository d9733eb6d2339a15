"""The goodput of a fleet by prompt length, output length and load: a policy beside an undivided fleet and fixed splits.

Load is a fraction of the rate that an undivided fleet answers when all it will ever be asked is there at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from rtp_llm.router.placement import DECODE, PREFILL, Policy
from rtp_llm.router.placement.cost import Cost
from rtp_llm.router.placement.least_loaded import LeastLoaded
from rtp_llm.router.placement.round_robin import RoundRobin
from rtp_llm.router.placement.step_cost import StepCost
from rtp_llm.simulation.clock import Clock
from rtp_llm.simulation.cluster import SimulatedCluster
from rtp_llm.simulation.goal import Goal
from rtp_llm.simulation.request import SimulatedRequest
from rtp_llm.simulation.worker import Engine

NUM_WORKERS = 8
PROMPTS = (64, 512, 2048, 8192)
OUTPUTS = (32, 256)
LOADS = (0.3, 0.7, 0.95)
CHUNKS = (1.0, 0.9)  # of the goal's ITL, what engines of the undivided fleet aim at; the better one counts
WARM_UP = 0.2  # of the requests aren't judged
SECONDS = 4.0
LEAST_REQUESTS, MOST_REQUESTS = 400, 2500


@dataclass(frozen=True)
class Machine:
    """What a worker is made of."""

    name: str
    cost: StepCost
    kv_tokens: int
    kv_bytes_per_token: float
    wire_bytes_per_s: float
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256
    block_tokens: int = 64


@dataclass(frozen=True)
class Point:
    """Goodput: the part of the requests that met the goal."""

    prompt_tokens: int
    output_tokens: int
    load: float
    rate: float
    undivided: float
    split: float  # the best of the fixed splits
    num_prefill: int  # of which it is
    cost: float

    @property
    def ratio(self) -> float:
        """Of `cost` to the better of both."""
        return self.cost / max(self.undivided, self.split)


def grid(
    machine: Machine,
    prompts: Iterable[int] = PROMPTS,
    outputs: Iterable[int] = OUTPUTS,
    loads: Iterable[float] = LOADS,
    seeds: Iterable[int] = (1, 2, 3),
) -> Iterator[Point]:
    for prompt in prompts:
        for output in outputs:
            workload = Workload(machine, prompt, output)
            saturated = workload.saturated_rate()
            for load in loads:
                yield workload.point(load, load * saturated, tuple(seeds))


class Workload:
    """Requests of one length on one kind of machine."""

    def __init__(self, machine: Machine, prompt_tokens: int, output_tokens: int) -> None:
        self._prompt, self._output = prompt_tokens, output_tokens
        self.goal = Goal(cost=machine.cost)
        _, self._itl_s = self.goal.targets(self._request(0, 0.0))
        self.engine = Engine(
            cost=machine.cost,
            kv_tokens=machine.kv_tokens,
            kv_bytes_per_token=machine.kv_bytes_per_token,
            wire_bytes_per_s=machine.wire_bytes_per_s,
            max_num_batched_tokens=machine.max_num_batched_tokens,
            max_num_seqs=machine.max_num_seqs,
            block_tokens=machine.block_tokens,
            itl_target_s=self._itl_s,
            max_queued_tokens=1 << 40,
        )

    def saturated_rate(self) -> float:
        """Requests a second of the middle half, of many that are all there at once."""
        clock = Clock()
        cluster = SimulatedCluster(RoundRobin(), _pools(NUM_WORKERS), self.engine, clock)
        count = NUM_WORKERS * max(64, min(768, 200_000 // self._prompt))
        cluster.ask([self._request(number, 0.0) for number in range(count)])
        clock.run()
        ends = sorted(request.last_token or 0.0 for request in cluster.requests)
        first, last = count // 4, 3 * count // 4
        return (last - first) / (ends[last] - ends[first])

    def point(self, load: float, rate: float, seeds: tuple[int, ...]) -> Point:
        fixed = {num: self._fixed(num, rate, seeds) for num in range(1, NUM_WORKERS + 1)}
        undivided = fixed.pop(NUM_WORKERS)
        num_prefill = max(fixed, key=lambda num: fixed[num])
        learned = self._cost_policy(StepCost())
        self.run(learned, NUM_WORKERS // 2, rate, seed=0, chunk=1.0)
        cost = self._mean(lambda: self._cost_policy(learned.fleet_cost), NUM_WORKERS // 2, rate, seeds, chunk=1.0)
        return Point(self._prompt, self._output, load, rate, undivided, fixed[num_prefill], num_prefill, cost)

    def run(self, policy: Policy, num_prefill: int, rate: float, seed: int, chunk: float) -> SimulatedCluster:
        """Poisson arrivals at `rate`, to their end."""
        clock, draw = Clock(), random.Random(seed)
        engine = replace(self.engine, itl_target_s=chunk * self._itl_s)
        admission = policy if isinstance(policy, Cost) else None
        cluster = SimulatedCluster(policy, _pools(num_prefill), engine, clock, goal=self.goal, admission=admission)
        arrival, requests = 0.0, []
        for number in range(max(LEAST_REQUESTS, min(MOST_REQUESTS, int(rate * SECONDS)))):
            arrival += draw.expovariate(rate)
            requests.append(self._request(number, arrival))
        cluster.ask(requests)
        clock.run()
        return cluster

    def _fixed(self, num_prefill: int, rate: float, seeds: tuple[int, ...]) -> float:
        """The best that a policy that doesn't predict makes of this split; prompts meet no decodes unless it is undivided."""
        makes: tuple[Callable[[], Policy], ...] = (RoundRobin, LeastLoaded)
        chunks = CHUNKS if num_prefill == NUM_WORKERS else CHUNKS[:1]
        return max(self._mean(make, num_prefill, rate, seeds, chunk) for make in makes for chunk in chunks)

    def _mean(
        self, make: Callable[[], Policy], num_prefill: int, rate: float, seeds: tuple[int, ...], chunk: float
    ) -> float:
        goodputs = []
        for seed in seeds:
            requests = self.run(make(), num_prefill, rate, seed, chunk).requests
            goodputs.append(self.goal.goodput(requests[int(WARM_UP * len(requests)) :]))
        return sum(goodputs) / len(goodputs)

    def _cost_policy(self, known: StepCost) -> Cost:
        ttft_s, itl_s = self.goal.targets(self._request(0, 0.0))
        return Cost(ttft_target_s=ttft_s, itl_target_s=itl_s, known=known)

    def _request(self, number: int, arrival: float) -> SimulatedRequest:
        return SimulatedRequest(number=number, arrival=arrival, prompt_tokens=self._prompt, output_tokens=self._output)


def _pools(num_prefill: int) -> dict[str, str]:
    return {f"w{i}": PREFILL if i < num_prefill else DECODE for i in range(NUM_WORKERS)}
