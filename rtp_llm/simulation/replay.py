"""Replay: what a configuration's pools do with a trace, in simulated time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from rtp_llm.config import Config, DecodeAutoscalingSettings, Pool, PrefillAutoscalingSettings
from rtp_llm.load.workload import Traced
from rtp_llm.router.placement import policy_of
from rtp_llm.router.steps_seen import StepsSeen
from rtp_llm.simulation.autoscaler import TICK_S, Autoscaler
from rtp_llm.simulation.clock import Clock
from rtp_llm.simulation.cluster import SimulatedCluster
from rtp_llm.simulation.grid import Machine
from rtp_llm.simulation.request import SimulatedRequest
from rtp_llm.simulation.worker import Engine

GIVEN_UP_S = 3600.0  # after the last arrival


@dataclass(frozen=True)
class Moment:
    """How many there were."""

    at: float
    waiting: int  # requests, in the router
    running: dict[Pool, int]  # workers
    starting: dict[Pool, int]


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """`ttft_s`, `itl_s`: the targets. Times in seconds since the trace began."""

    requests: Sequence[SimulatedRequest]
    moments: Sequence[Moment]
    worker_seconds: dict[Pool, float]
    ttft_s: float
    itl_s: float
    seconds: float

    def is_met(self, request: SimulatedRequest) -> bool:
        return request.is_finished and request.ttft <= self.ttft_s and request.itl <= self.itl_s

    def attainment(self, requests: Sequence[SimulatedRequest]) -> float | None:
        """The part of `requests` that met both targets; None: there are none."""
        return sum(map(self.is_met, requests)) / len(requests) if requests else None


def replay(arrivals: Sequence[Traced], config: Config, machine: Machine, *, start_s: float) -> Replayed:
    """REQUIRES: there are some arrivals, in order."""
    clock, steps = Clock(), StepsSeen()
    engines = {pool: _engine(config, pool, machine) for pool in Pool}
    policy = policy_of(config)
    cluster = SimulatedCluster(policy, {}, engines[Pool.DECODE], clock, steps_seen=steps)
    autoscaler = Autoscaler(cluster, config, engines, steps, start_s=start_s)
    cluster.ask(
        [
            SimulatedRequest(
                number=number,
                arrival=each.due_s,
                prompt_tokens=each.prompt_tokens,
                output_tokens=each.output_tokens,
            )
            for number, each in enumerate(arrivals)
        ]
    )
    moments: list[Moment] = []
    last = arrivals[-1].due_s

    def tick() -> None:
        autoscaler.tick()
        pools = autoscaler.pools
        moments.append(
            Moment(
                clock.now,
                cluster.num_waiting,
                {name: len(pool.running) for name, pool in pools.items()},
                {name: len(pool.starting) for name, pool in pools.items()},
            )
        )
        if clock.now <= last or (cluster.num_live and clock.now < last + GIVEN_UP_S):
            clock.after(TICK_S, tick)

    tick()
    clock.run(until=last + GIVEN_UP_S)
    end = moments[-1].at
    return Replayed(
        requests=cluster.requests,
        moments=moments,
        worker_seconds={name: pool.worker_seconds(end) for name, pool in autoscaler.pools.items()},
        ttft_s=config.router.ttft_target_ms / 1000,
        itl_s=config.engine_of(Pool.DECODE).itl_target_ms / 1000,
        seconds=end,
    )


def fixed_sizes(config: Config) -> Iterator[tuple[dict[Pool, int], Config]]:
    """The same with pools of each fixed size within their limits."""
    limits = [range(max(config.sizes_of(pool).least, 1), config.sizes_of(pool).most + 1) for pool in Pool]
    for prefill, decode in product(*limits):
        sizes = {Pool.PREFILL: prefill, Pool.DECODE: decode}
        pools = {
            "prefill": config.prefill.model_copy(
                update={"replicas": prefill, "autoscaling": PrefillAutoscalingSettings()}
            ),
            "decode": config.decode.model_copy(update={"replicas": decode, "autoscaling": DecodeAutoscalingSettings()}),
        }
        yield sizes, config.model_copy(update=pools)


def _engine(config: Config, pool: Pool, machine: Machine) -> Engine:
    settings = config.engine_of(pool)
    kv_tokens = settings.num_kv_blocks * settings.block_tokens
    if settings.kv_cache_bytes:
        kv_tokens = int(settings.kv_cache_bytes / machine.kv_bytes_per_token)
    return Engine(
        cost=machine.cost,
        kv_tokens=kv_tokens or machine.kv_tokens,
        kv_bytes_per_token=machine.kv_bytes_per_token,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_num_seqs=settings.max_num_seqs,
        block_tokens=settings.block_tokens,
        itl_target_s=settings.itl_target_ms / 1000,
        max_queued_tokens=config.worker.max_queued_tokens,
        wire_bytes_per_s=machine.wire_bytes_per_s,
    )


def longest_held(config: Config, machine: Machine) -> int:
    """Tokens of the longest request that a worker of each pool holds."""
    return min(_engine(config, pool, machine).kv_tokens for pool in Pool)
