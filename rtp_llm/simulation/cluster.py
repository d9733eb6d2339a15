"""SimulatedCluster: one router with a real policy, workers, and the wires between them."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence

from rtp_llm.router.placement import (
    FleetEvent,
    Placement,
    PlacementQuery,
    Policy,
    Predictor,
    StepMeasured,
    ViewChanged,
    WorkerView,
)
from rtp_llm.router.placement.load import WorkerLedger
from rtp_llm.router.placement.step_cost import Step
from rtp_llm.simulation.clock import Clock
from rtp_llm.simulation.goal import Goal
from rtp_llm.simulation.request import SimulatedRequest
from rtp_llm.simulation.worker import Engine, SimulatedWorker

LATENCY_S = 0.0005  # of a message
LOAD_INTERVAL_S = 0.1
LOAD_DELAY_S = 0.02


class SimulatedCluster:
    """`ask` requests at their arrivals, then `clock.run()`. `goal`: what each request is told to meet; one that by
    `admission` can't is refused."""

    def __init__(
        self,
        policy: Policy,
        pools: Mapping[str, str],
        engine: Engine,
        clock: Clock,
        *,
        goal: Goal | None = None,
        admission: Predictor | None = None,
        seed: int = 0,
    ) -> None:
        self.clock = clock
        self.workers = {id: SimulatedWorker(id, pool, engine, clock, self) for id, pool in pools.items()}
        self.requests: list[SimulatedRequest] = []
        self._engine = engine
        self._policy = policy
        self._goal = goal
        self._admission = admission
        self._random = random.Random(seed)
        self._ledgers = {id: WorkerLedger() for id in pools}
        self._load_at = dict.fromkeys(pools, 0.0)
        self._load_sent = dict.fromkeys(pools, 0.0)
        self._load_due: set[str] = set()
        self._last_steps: dict[str, StepMeasured] = {}  # since the last Load, which tells of it
        self.snapshot: dict[str, WorkerView] = {}
        self._waiting: deque[SimulatedRequest] = deque()
        self._placements: dict[int, tuple[str, str | None]] = {}
        self._sent: dict[str, float] = dict.fromkeys(pools, 0.0)  # when each worker's wire is free
        self._granted: set[int] = set()
        self._prefilled: set[int] = set()
        for id in pools:
            self._loaded(id)

    def ask(self, requests: Sequence[SimulatedRequest]) -> None:
        self.requests += requests
        for request in requests:
            self.clock.at(request.arrival, lambda request=request: self._arrived(request))  # type: ignore[misc]

    # --- Router

    def _arrived(self, request: SimulatedRequest) -> None:
        self._waiting.append(request)
        self._place_waiting()

    def _place_waiting(self) -> None:
        while self._waiting:
            request = self._waiting[0]
            query = self._query(request)
            request.refused = self._refuses(query)
            placement = None if request.refused else self._policy.choose(self.snapshot, query)
            if placement is None and not request.refused:
                return
            self._waiting.popleft()
            if placement is not None:
                self._place(request, placement)

    def _refuses(self, query: PlacementQuery) -> bool:
        if self._admission is None or query.ttft_target_s is None:
            return False
        found = self._admission.predicted(self.snapshot, query)
        return found is not None and query.waited_s + found.ttft_s > query.ttft_target_s

    def _query(self, request: SimulatedRequest) -> PlacementQuery:
        ttft, itl = (None, None) if self._goal is None else self._goal.targets(request)
        return PlacementQuery(
            prompt_tokens=request.prompt_tokens,
            total_tokens=request.total_tokens,
            must_run_alone=request.output_tokens <= 1,
            random=self._random,
            now=self.clock.now,
            waited_s=self.clock.now - request.arrival,
            ttft_target_s=ttft,
            itl_target_s=itl,
        )

    def _place(self, request: SimulatedRequest, placement: Placement) -> None:
        request.placed = self.clock.now
        sender = placement.sender.id
        receiver = None if placement.receiver is None else placement.receiver.id
        self._placements[request.number] = sender, receiver
        if receiver is not None:
            self._ledgers[receiver].receives(request.number, request.prompt_tokens)
            self._renew(receiver)
        self._ledgers[sender].submitted(request.number, request.prompt_tokens, runs=receiver is None)
        self._renew(sender)
        worker = self.workers[sender]
        self.clock.after(LATENCY_S, lambda: self._submit(worker, request, alone=receiver is None))

    def _submit(self, worker: SimulatedWorker, request: SimulatedRequest, *, alone: bool) -> None:
        worker.submit(request, alone=alone)
        self._look_at_load(worker.id, LOAD_DELAY_S)

    def _spoke(self, worker: str, request: SimulatedRequest) -> None:
        if self._ledgers[worker].forget(request.number):
            self._renew(worker)

    def _renew(self, id: str) -> None:
        worker, ledger = self.workers[id], self._ledgers[id]
        view = ledger.view(
            id=id,
            epoch=1,
            pool=worker.pool,
            load_at=self._load_at[id],
            max_model_len=self._engine.kv_tokens,
        )
        if view != self.snapshot.get(id):
            self.snapshot[id] = view
            self._tell(ViewChanged(view))

    def _tell(self, event: FleetEvent) -> None:
        self._policy.observe([event])

    # --- Loads

    def _look_at_load(self, id: str, delay_s: float) -> None:
        if id not in self._load_due:
            self._load_due.add(id)
            self.clock.at(
                max(self.clock.now + delay_s, self._load_sent[id] + LOAD_INTERVAL_S), lambda: self._publish(id)
            )

    def _publish(self, id: str) -> None:
        self._load_due.discard(id)
        self._load_sent[id] = self.clock.now
        load = self.workers[id].load()
        if load != self._ledgers[id].load:
            self.clock.after(LATENCY_S, lambda: self._loaded(id))

    def _loaded(self, id: str) -> None:
        self._ledgers[id].loaded(self.workers[id].load())
        self._load_at[id] = self.clock.now
        if (measured := self._last_steps.pop(id, None)) is not None:
            self._tell(measured)
        self._renew(id)
        self._place_waiting()

    # --- Workers

    def scheduled(self, worker: SimulatedWorker, request: SimulatedRequest) -> None:
        _, receiver = self._placements[request.number]
        assert receiver is not None
        self.workers[receiver].reserve(request, lambda: self._grant(request))

    def _grant(self, request: SimulatedRequest) -> None:
        self._granted.add(request.number)
        if request.number in self._prefilled:
            self._send(request)

    def sampled_first(self, worker: SimulatedWorker, request: SimulatedRequest) -> None:
        request.first_token = self.clock.now + LATENCY_S
        sender, receiver = self._placements[request.number]
        self.clock.after(LATENCY_S, lambda: self._spoke(sender, request))
        if receiver is not None:
            self._prefilled.add(request.number)
            if request.number in self._granted:
                self._send(request)

    def _send(self, request: SimulatedRequest) -> None:
        """The rest of its KV: what was computed before its last chunk went out meanwhile, as far as the wire went."""
        sender, receiver = self._placements[request.number]
        assert receiver is not None
        seconds = request.prompt_tokens * self._engine.kv_bytes_per_token / self._engine.wire_bytes_per_s
        prefill_s = self.clock.now - (request.placed or 0.0)
        begun = max(self._sent[sender], self.clock.now - prefill_s)
        self._sent[sender] = done = max(begun + seconds, self.clock.now + seconds * LAST_MESSAGE)
        self.clock.at(done + 2 * LATENCY_S, lambda: self._committed(request, sender, receiver))

    def _committed(self, request: SimulatedRequest, sender: str, receiver: str) -> None:
        self.workers[sender].release(request)
        self._look_at_load(sender, LOAD_DELAY_S)
        self._spoke(receiver, request)
        self.workers[receiver].join(request)

    def finished(self, worker: SimulatedWorker, request: SimulatedRequest) -> None:
        request.last_token = self.clock.now + LATENCY_S
        for id in self._placements.pop(request.number):
            if id is not None and self._ledgers[id].over(request.number):
                self._renew(id)
        self._granted.discard(request.number)
        self._prefilled.discard(request.number)
        self.clock.after(LATENCY_S, self._place_waiting)

    def stepped(self, worker: SimulatedWorker, step: Step, seconds: float) -> None:
        self._look_at_load(worker.id, LOAD_DELAY_S)
        self._last_steps[worker.id] = StepMeasured(worker.id, step, seconds)


LAST_MESSAGE = 1 / 9  # of a prompt's KV goes out when its last layers are computed
