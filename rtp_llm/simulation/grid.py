"""The goodput of a fleet by prompt length, output length and load: a policy beside an undivided fleet and fixed splits.

Load is a fraction of the rate that an undivided fleet answers when all it will ever be asked is there at once.
"""

from __future__ import annotations

import math
import operator
import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
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
HOPELESS = 0.1  # below the best after the first draws
# Two-sided 95% quantiles of Student's t by degrees of freedom, from 1.
STUDENT_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


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
    """Goodput: the part of the requests that met the goal, the mean over all draws of the arrivals."""

    prompt_tokens: int
    output_tokens: int
    load: float
    rate: float
    undivided: float
    split: float  # the best of the fixed splits
    num_prefill: int  # of which it is
    cost: float
    gains: tuple[float, ...]  # by draw: of `cost` over the better of both

    @property
    def better(self) -> float:
        return max(self.undivided, self.split)

    @property
    def ratio(self) -> float:
        """Of `cost` to the better of both; infinite where these met nothing."""
        return self.cost / self.better if self.better else math.inf if self.cost else 1.0

    @property
    def interval(self) -> tuple[float, float]:
        """In which the ratio lies with 95%, by Student's t over the draws."""
        within = _half_width(self.gains) / self.better if self.better else 0.0
        return self.ratio - within, self.ratio + within


def _half_width(draws: Sequence[float]) -> float:
    """Of the mean's 95% interval. REQUIRES: two draws."""
    degrees = len(draws) - 1
    t = STUDENT_95[min(degrees, len(STUDENT_95)) - 1]
    return t * statistics.stdev(draws) / math.sqrt(len(draws))


def _is_decided(gains: Sequence[float], better: float, bar: float) -> bool:
    """Whether the interval of 1 + gain / better doesn't hold `bar`."""
    return abs(statistics.fmean(gains) + (1 - bar) * better) >= _half_width(gains)


@dataclass(frozen=True)
class Draws:
    """How often arrivals are drawn: until the interval of the ratio lies on one side of `bar`."""

    least: int = 3
    most: int = 3
    bar: float = 0.98


def grid(
    machine: Machine,
    prompts: Iterable[int] = PROMPTS,
    outputs: Iterable[int] = OUTPUTS,
    loads: Iterable[float] = LOADS,
    draws: Draws = Draws(),
) -> Iterator[Point]:
    for prompt in prompts:
        for output in outputs:
            workload = Workload(machine, prompt, output)
            saturated = workload.saturated_rate()
            for load in loads:
                yield workload.point(load, load * saturated, draws)


@dataclass(frozen=True)
class Fixed:
    """A fleet that isn't `cost`'s: undivided, where all prefill, or a split in which prompts meet no decodes."""

    num_prefill: int
    make: Callable[[], Policy]
    chunk: float = 1.0  # of the goal's ITL

    @property
    def is_undivided(self) -> bool:
        return self.num_prefill == NUM_WORKERS


FIXED = [
    Fixed(num, make, chunk)
    for make in (RoundRobin, LeastLoaded)
    for num in range(1, NUM_WORKERS + 1)
    for chunk in (CHUNKS if num == NUM_WORKERS else CHUNKS[:1])
]


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

    def point(self, load: float, rate: float, draws: Draws) -> Point:
        learned = self._cost_policy(StepCost())
        self.run(learned, NUM_WORKERS // 2, rate, seed=0, chunk=1.0)
        race: dict[Fixed, list[float]] = {fixed: [] for fixed in FIXED}
        cost: list[float] = []
        for seed in range(1, draws.most + 1):
            for fixed, goodputs in race.items():
                goodputs.append(self._goodput(fixed.make(), fixed.num_prefill, rate, seed, fixed.chunk))
            cost.append(self._goodput(self._cost_policy(learned.fleet_cost), NUM_WORKERS // 2, rate, seed, 1.0))
            best = max(race.values(), key=statistics.fmean)
            gains = tuple(map(operator.sub, cost, best))
            if seed >= draws.least and _is_decided(gains, statistics.fmean(best), draws.bar):
                break
            if seed == draws.least:  # who can't be the best any more is drawn no further
                least = statistics.fmean(best) - HOPELESS
                kinds = (True, False)
                kept = [max(_of_kind(race, kind), key=lambda fixed: statistics.fmean(race[fixed])) for kind in kinds]
                race = {f: runs for f, runs in race.items() if f in kept or statistics.fmean(runs) >= least}
        mean = {fixed: statistics.fmean(goodputs) for fixed, goodputs in race.items()}
        undivided = max(mean[fixed] for fixed in _of_kind(race, True))
        split = max(_of_kind(race, False), key=mean.__getitem__)
        return Point(
            prompt_tokens=self._prompt,
            output_tokens=self._output,
            load=load,
            rate=rate,
            undivided=undivided,
            split=mean[split],
            num_prefill=split.num_prefill,
            cost=statistics.fmean(cost),
            gains=gains,
        )

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

    def _goodput(self, policy: Policy, num_prefill: int, rate: float, seed: int, chunk: float) -> float:
        requests = self.run(policy, num_prefill, rate, seed, chunk).requests
        return self.goal.goodput(requests[int(WARM_UP * len(requests)) :])

    def _cost_policy(self, known: StepCost) -> Cost:
        ttft_s, itl_s = self.goal.targets(self._request(0, 0.0))
        return Cost(ttft_target_s=ttft_s, itl_target_s=itl_s, known=known)

    def _request(self, number: int, arrival: float) -> SimulatedRequest:
        return SimulatedRequest(number=number, arrival=arrival, prompt_tokens=self._prompt, output_tokens=self._output)


def _of_kind(race: Iterable[Fixed], is_undivided: bool) -> list[Fixed]:
    return [fixed for fixed in race if fixed.is_undivided == is_undivided]


def _pools(num_prefill: int) -> dict[str, str]:
    return {f"w{i}": PREFILL if i < num_prefill else DECODE for i in range(NUM_WORKERS)}
