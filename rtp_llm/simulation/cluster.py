"""SimulatedCluster: one router with a real policy, workers, and the wires between them."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence

from rtp_llm.router.placement import (
    CacheChanged,
    CacheReset,
    FleetEvent,
    HandoverMeasured,
    Placement,
    PlacementQuery,
    Policy,
    Predictor,
    StepMeasured,
    ViewChanged,
    WorkerGone,
    WorkerView,
    watches_caches,
)
from rtp_llm.router.placement.load import WorkerLedger
from rtp_llm.router.placement.step_cost import Step
from rtp_llm.router.steps_seen import StepsSeen
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
        steps_seen: StepsSeen | None = None,
        seed: int = 0,
    ) -> None:
        self.clock = clock
        self.workers: dict[str, SimulatedWorker] = {}
        self.requests: list[SimulatedRequest] = []
        self._engine = engine
        self._steps_seen = steps_seen
        self._policy = policy
        self._goal = goal
        self._admission = admission
        self._random = random.Random(seed)
        self._ledgers: dict[str, WorkerLedger] = {}
        self._load_at: dict[str, float] = {}
        self._load_sent: dict[str, float] = {}
        self._load_due: set[str] = set()
        self._last_steps: dict[str, StepMeasured] = {}  # since the last Load, which tells of it
        self.snapshot: dict[str, WorkerView] = {}
        self._waiting: deque[SimulatedRequest] = deque()
        self._placements: dict[int, tuple[str, str | None]] = {}
        self._tokens_sent: dict[int, int] = {}  # of those that are handed over, as the policy knows
        self._sent: dict[str, float] = {}  # when each worker's wire is free
        self.links: dict[tuple[str, str], float] = {}  # bytes a second from S to R, where not the engine's
        self._named = Counter[str]()  # by worker: requests that need it
        self._draining: set[str] = set()
        self.left: Callable[[str], None] = lambda id: None  # is told who has drained
        self._granted: set[int] = set()
        self._prefilled: set[int] = set()
        for id, pool in pools.items():
            self.add(id, pool)

    def add(self, id: str, pool: str, engine: Engine | None = None) -> None:
        """A worker that has started, of the cluster's engine or one of its own."""
        self.workers[id] = SimulatedWorker(id, pool, engine or self._engine, self.clock, self)
        self._ledgers[id] = WorkerLedger()
        self._load_at[id] = self._load_sent[id] = self._sent[id] = self.clock.now
        self._loaded(id)

    def drain(self, id: str) -> None:
        """Nothing is placed there any more; it goes when what is there has ended."""
        self._draining.add(id)
        self._renew(id)
        self._look_for_drained(id)

    @property
    def num_live(self) -> int:
        """Requests that have come and aren't answered yet."""
        return len(self._waiting) + len(self._placements)

    @property
    def num_waiting(self) -> int:
        """In the router."""
        return len(self._waiting)

    @property
    def tokens_waiting(self) -> int:
        return sum(request.prompt_tokens for request in self._waiting)

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
            block_hashes=(lambda size: b"".join(request.block_hashes)) if request.block_hashes else None,
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
        self._named.update(self._workers_of(request))
        if placement.tokens_sent is not None:
            self._tokens_sent[request.number] = placement.tokens_sent
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
        if worker in self._ledgers and self._ledgers[worker].forget(request.number):
            self._renew(worker)

    def _renew(self, id: str) -> None:
        worker, ledger = self.workers[id], self._ledgers[id]
        view = ledger.view(
            id=id,
            epoch=1,
            pool=worker.pool,
            load_at=self._load_at[id],
            max_model_len=worker.engine.kv_tokens,
            draining=id in self._draining,
        )
        if view != (before := self.snapshot.get(id)):
            self.snapshot[id] = view
            self._tell(ViewChanged(view))
            if before is None and watches_caches(self._policy):
                self._tell(CacheReset(id, b"".join(worker.cache.known)))

    def _tell(self, event: FleetEvent) -> None:
        self._policy.observe([event])

    # --- Loads

    def _look_at_load(self, id: str, delay_s: float) -> None:
        if id in self.workers and id not in self._load_due:
            self._load_due.add(id)
            self.clock.at(
                max(self.clock.now + delay_s, self._load_sent[id] + LOAD_INTERVAL_S), lambda: self._publish(id)
            )

    def _publish(self, id: str) -> None:
        self._load_due.discard(id)
        self._load_sent[id] = self.clock.now
        if id not in self.workers:
            return
        if self.workers[id].load() != self._ledgers[id].load:
            self.clock.after(LATENCY_S, lambda: self._loaded(id))
        if watches_caches(self._policy) and (events := self.workers[id].cache.take_events()):
            self.clock.after(LATENCY_S, lambda: self._tell(CacheChanged(id, events)))

    def _loaded(self, id: str) -> None:
        if id not in self.workers:
            return
        self._ledgers[id].loaded(self.workers[id].load())
        self._load_at[id] = self.clock.now
        if (measured := self._last_steps.pop(id, None)) is not None:
            self._tell(measured)
            if self._steps_seen is not None:
                self._steps_seen.observe(self.workers[id].pool, measured, self.clock.now)
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
        tokens = request.prompt_tokens - request.received_cached
        rate = self.links.get((sender, receiver), self._engine.wire_bytes_per_s)
        seconds = tokens * self._engine.kv_bytes_per_token / rate
        prefill_s = self.clock.now - (request.placed or 0.0)
        begun = max(self._sent[sender], self.clock.now - prefill_s)
        self._sent[sender] = done = max(begun + seconds, self.clock.now + seconds * LAST_MESSAGE)
        self.clock.at(done + 2 * LATENCY_S, lambda: self._committed(request, sender, receiver))

    def _committed(self, request: SimulatedRequest, sender: str, receiver: str) -> None:
        if (tokens := self._tokens_sent.pop(request.number, None)) is not None:
            assert request.first_token is not None
            seconds = max(self.clock.now - request.first_token, 0.0)
            self._tell(HandoverMeasured(sender, receiver, tokens, seconds, self.clock.now))
        self.workers[sender].release(request)
        self._let_go(sender)
        self._look_at_load(sender, LOAD_DELAY_S)
        self._spoke(receiver, request)
        self.workers[receiver].join(request)

    def finished(self, worker: SimulatedWorker, request: SimulatedRequest) -> None:
        request.last_token = self.clock.now + LATENCY_S
        for id in self._workers_of(request):
            if id in self._ledgers and self._ledgers[id].over(request.number):
                self._renew(id)
        del self._placements[request.number]
        self._let_go(worker.id)
        self._granted.discard(request.number)
        self._prefilled.discard(request.number)
        self.clock.after(LATENCY_S, self._place_waiting)

    def _workers_of(self, request: SimulatedRequest) -> list[str]:
        return [id for id in self._placements[request.number] if id is not None]

    def _let_go(self, id: str) -> None:
        self._named[id] -= 1
        self._look_for_drained(id)

    def _look_for_drained(self, id: str) -> None:
        if id in self._draining and self._named[id] == 0:
            self.clock.after(0.0, lambda: self._leave(id))  # its step ends first

    def _leave(self, id: str) -> None:
        if id not in self.workers:
            return
        for known in (
            self.workers,
            self._ledgers,
            self.snapshot,
            self._load_at,
            self._load_sent,
            self._sent,
            self._named,
        ):
            del known[id]
        self._draining.discard(id)
        self._tell(WorkerGone(id))
        self.left(id)
        self._place_waiting()

    def stepped(self, worker: SimulatedWorker, step: Step, seconds: float) -> None:
        self._look_at_load(worker.id, LOAD_DELAY_S)
        self._last_steps[worker.id] = StepMeasured(worker.id, step, seconds)


LAST_MESSAGE = 1 / 9  # of a prompt's KV goes out when its last layers are computed
