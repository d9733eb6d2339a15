"""Autoscaler: the real autoscaling policy over a simulated cluster, whose workers are started and drained as Serve does it."""

from __future__ import annotations

from dataclasses import dataclass, field

from rtp_llm.autoscaling.figures import ApplicationFigures, PoolFigures, RouterFigures, Window
from rtp_llm.autoscaling.policy import AutoscalingPolicy, PolicySettings
from rtp_llm.config import Config, Pool
from rtp_llm.router.steps_seen import StepsSeen
from rtp_llm.simulation.cluster import SimulatedCluster
from rtp_llm.simulation.serve_delays import ServeDelays
from rtp_llm.simulation.worker import Engine

TICK_S = 0.1  # Serve's control loop


@dataclass
class SimulatedPool:
    """Ids of workers in the order in which they were asked for."""

    delays: ServeDelays
    engine: Engine
    target: int
    starting: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    asked_at: dict[str, float] = field(default_factory=dict)  # of those that start, run or drain
    asked: int = 0  # so far
    worker_s: float = 0.0  # of those that have left

    def worker_seconds(self, now: float) -> float:
        return self.worker_s + sum(now - begin for begin in self.asked_at.values())


class Autoscaler:
    """REQUIRES: `cluster` has no workers yet, and tells `steps`. A worker runs `start_s` after it was asked for; those at the
    beginning run at once."""

    def __init__(
        self,
        cluster: SimulatedCluster,
        config: Config,
        engines: dict[Pool, Engine],
        steps: StepsSeen,
        *,
        start_s: float,
    ) -> None:
        self._cluster, self._clock = cluster, cluster.clock
        self._steps = steps
        self._start_s = start_s
        self._window_s, self._interval_s = config.autoscaling.window_s, config.autoscaling.interval_s
        self._policy = AutoscalingPolicy(PolicySettings.of(config))
        self._desired = {pool: config.sizes_of(pool).initial for pool in Pool}
        self._decided_at = float("-inf")
        self._windows: dict[str, Window] = {}  # by worker
        self.pools: dict[Pool, SimulatedPool] = {}
        cluster.left = self._left
        for pool in Pool:
            delays = ServeDelays(config.autoscaling_of(pool))
            self.pools[pool] = SimulatedPool(delays, engines[pool], self._desired[pool])
            for _ in range(self._desired[pool]):
                self._run(pool, self._ask(pool))

    def tick(self) -> None:
        """Serve's, every TICK_S."""
        now = self._clock.now
        if now - self._decided_at >= self._interval_s - TICK_S / 2:
            self._decided_at = now
            self._record(now)
            self._desired = self._policy.desired(self._application())
        for name, pool in self.pools.items():
            pool.target = pool.delays.target(
                self._desired[name], running=len(pool.running), target=pool.target, now=now
            )
            self._follow(name, pool)

    # --- Workers

    def _ask(self, name: Pool) -> str:
        pool = self.pools[name]
        pool.asked += 1
        worker = f"{name}-{pool.asked}"
        pool.asked_at[worker] = self._clock.now
        return worker

    def _follow(self, name: Pool, pool: SimulatedPool) -> None:
        """Serve's order of leaving: those that don't run yet, then the newest."""
        while len(pool.starting) + len(pool.running) < pool.target:
            worker = self._ask(name)
            pool.starting.append(worker)
            self._clock.after(self._start_s, lambda worker=worker: self._started(name, worker))  # type: ignore[misc]
        while len(pool.starting) + len(pool.running) > pool.target:
            if pool.starting:
                self._left(pool.starting.pop())
            else:
                worker = pool.running.pop()
                self._windows.pop(worker, None)
                self._cluster.drain(worker)

    def _started(self, pool: Pool, worker: str) -> None:
        if worker in self.pools[pool].starting:
            self.pools[pool].starting.remove(worker)
            self._run(pool, worker)

    def _run(self, pool: Pool, worker: str) -> None:
        self.pools[pool].running.append(worker)
        self._cluster.add(worker, pool.value, self.pools[pool].engine)

    def _left(self, worker: str) -> None:
        for pool in self.pools.values():
            if worker in pool.asked_at:
                pool.worker_s += self._clock.now - pool.asked_at.pop(worker)

    # --- Figures

    def _record(self, now: float) -> None:
        for pool in self.pools.values():
            for worker in pool.running:
                figures = self._cluster.workers[worker].autoscaling_figures()
                if worker in self._windows:
                    self._windows[worker].put(now, figures)
                else:
                    self._windows[worker] = Window(self._window_s, now, figures)

    def _application(self) -> ApplicationFigures:
        return ApplicationFigures(
            pools={
                name: PoolFigures.of(
                    [self._windows[worker] for worker in pool.running],
                    running=len(pool.running),
                    target=pool.target,
                )
                for name, pool in self.pools.items()
            },
            routers=[
                RouterFigures(
                    waiting=self._cluster.num_waiting,
                    waiting_tokens=self._cluster.tokens_waiting,
                    **self._steps.costs(),
                )
            ],
        )
