"""SimulatedWorker: an engine whose steps take what a StepCost says.

It schedules as csrc/engine/scheduler.h does: all decodes, then chunks of running prefills, then admissions, first come, first
served; prefill beside decodes gets the rows that `itl_target_s` leaves. Room for a whole answer is taken at admission, so
nothing is preempted, and none is shared; what is left of the pool holds cached prompt blocks.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from rtp_llm.autoscaling.figures import WorkerFigures
from rtp_llm.router.placement.load import WorkerLoad
from rtp_llm.router.placement.step_cost import Step, StepCost, pairs
from rtp_llm.simulation.clock import Clock
from rtp_llm.simulation.prefix_cache import SimulatedPrefixCache
from rtp_llm.simulation.request import SimulatedRequest

MIN_PREFILL_ROWS = 16  # beside decodes


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A worker's settings, and what its machine does."""

    cost: StepCost
    kv_tokens: int
    kv_bytes_per_token: float
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256
    block_tokens: int = 64
    itl_target_s: float = 0.05
    max_queued_tokens: int = 16384
    wire_bytes_per_s: float = 20e9


class WorkerListener(Protocol):
    def sampled_first(self, worker: SimulatedWorker, request: SimulatedRequest) -> None:
        """The prompt is computed and its first token sampled, here."""

    def finished(self, worker: SimulatedWorker, request: SimulatedRequest) -> None: ...

    def scheduled(self, worker: SimulatedWorker, request: SimulatedRequest) -> None:
        """All blocks of a prompt that is handed over are owned: time to reserve at its receiver."""

    def stepped(self, worker: SimulatedWorker, step: Step, seconds: float) -> None: ...


class SimulatedWorker:
    def __init__(self, id: str, pool: str, engine: Engine, clock: Clock, listener: WorkerListener) -> None:
        self.id, self.pool, self.engine = id, pool, engine
        self._clock, self._listener = clock, listener
        self._waiting: deque[tuple[SimulatedRequest, bool]] = deque()  # (request, runs alone)
        self._prefills: list[tuple[SimulatedRequest, bool]] = []
        self._decodes: list[tuple[int, int, SimulatedRequest]] = []  # heap: (ends at decode step, number, request)
        self._context_tokens = 0  # of the decodes
        self._decode_steps = 0
        self._awaiting: deque[tuple[SimulatedRequest, Callable[[], None]]] = deque()  # Reserves that don't fit
        self._slots = 0  # taken
        self._kv_tokens = 0  # taken
        self._row_s = 0.0  # the engine's own estimate, as csrc/engine/step_cost.h keeps it
        self._decode_s: dict[int, float] = {}
        self._running = False
        self.busy_s = 0.0
        self.prompt_tokens_computed = self.decode_tokens_computed = 0
        self.cache = SimulatedPrefixCache(engine.block_tokens)
        self._held: dict[int, list[bytes | None]] = {}  # by request: its full blocks here; None: another's is known

    # --- What others ask

    def submit(self, request: SimulatedRequest, *, alone: bool) -> None:
        request.computed = 0
        self._waiting.append((request, alone))
        self._wake()

    def reserve(self, request: SimulatedRequest, granted: Callable[[], None]) -> None:
        """A slot and room for a handed over request; `granted` is called when it has them."""
        self._awaiting.append((request, granted))
        self._grant()

    def join(self, request: SimulatedRequest) -> None:
        """The KV of a granted request has come."""
        self._know(request, request.prompt_tokens)
        self._decode(request)
        self._wake()

    def release(self, request: SimulatedRequest) -> None:
        """A handed over request's blocks here."""
        self._kv_tokens -= request.prompt_tokens
        self._let_go(request)
        self._wake()
        self._grant()

    def load(self) -> WorkerLoad:
        queued = sum(each.prompt_tokens - each.computed for each, _ in (*self._waiting, *self._prefills))
        total = self.engine.kv_tokens // self.engine.block_tokens
        return WorkerLoad(
            queued_tokens=queued,
            max_queued_tokens=self.engine.max_queued_tokens,
            running=len(self._decodes) + len(self._prefills),
            waiting=len(self._waiting),
            free_blocks=total - self._kv_tokens // self.engine.block_tokens,
            total_blocks=total,
            block_tokens=self.engine.block_tokens,
            slots=self.engine.max_num_seqs,
        )

    def autoscaling_figures(self) -> WorkerFigures:
        load = self.load()
        return WorkerFigures(
            queued_tokens=load.queued_tokens,
            waiting=load.waiting,
            running=load.running,
            max_num_seqs=load.slots,
            kv_tokens=self._kv_tokens,
            max_kv_tokens=self.engine.kv_tokens,
            prompt_tokens_computed=self.prompt_tokens_computed,
            decode_tokens_computed=self.decode_tokens_computed,
        )

    # --- The step loop

    def _wake(self) -> None:
        if not self._running:
            self._running = True
            self._clock.after(0.0, self._step)

    def _step(self) -> None:
        chunks = self._schedule()
        decodes = len(self._decodes)
        if not chunks and not decodes:
            self._running = False
            return
        rows = sum(rows for _, _, rows in chunks)
        step = Step(
            decode_rows=decodes,
            context_tokens=self._context_tokens,
            prefill_rows=rows,
            attention_pairs=sum(pairs(rows, request.computed) for request, _, rows in chunks),
        )
        seconds = self.engine.cost.seconds(step)
        self.busy_s += seconds
        self._observe(decodes, rows, seconds)
        self._clock.after(seconds, lambda: self._end(step, seconds, chunks))

    def _end(self, step: Step, seconds: float, chunks: list[tuple[SimulatedRequest, bool, int]]) -> None:
        self.prompt_tokens_computed += step.prefill_rows
        self.decode_tokens_computed += step.decode_rows
        if step.decode_rows:
            self._decode_steps += 1
            self._context_tokens += step.decode_rows
        while self._decodes and self._decodes[0][0] <= self._decode_steps:
            self._finish(heapq.heappop(self._decodes)[2])
        for request, alone, rows in chunks:
            request.computed += rows
            self._know(request, request.computed)
            if request.computed == request.prompt_tokens:
                self._sampled(request, alone)
        self._listener.stepped(self, step, seconds)
        self._step()

    def _schedule(self) -> list[tuple[SimulatedRequest, bool, int]]:
        budget = self._prefill_budget()
        chunks: list[tuple[SimulatedRequest, bool, int]] = []
        for request, alone in self._prefills:
            if budget <= 0:
                return chunks
            budget = self._add(chunks, request, alone, budget)
        while budget > 0 and self._waiting and self._admits(*self._waiting[0]):
            request, alone = self._waiting.popleft()
            self._prefills.append((request, alone))
            request.cached = request.computed = self._hit(request)
            if not alone:
                self._listener.scheduled(self, request)
            budget = self._add(chunks, request, alone, budget)
        return chunks

    def _add(
        self, chunks: list[tuple[SimulatedRequest, bool, int]], request: SimulatedRequest, alone: bool, budget: int
    ) -> int:
        rows = min(request.prompt_tokens - request.computed, budget)
        chunks.append((request, alone, rows))
        return budget - rows

    def _admits(self, request: SimulatedRequest, alone: bool) -> bool:
        needed = request.total_tokens if alone else request.prompt_tokens
        if self._slots >= self.engine.max_num_seqs or self._kv_tokens + needed > self.engine.kv_tokens:
            return False
        self._slots += 1
        self._kv_tokens += needed
        return True

    def _prefill_budget(self) -> int:
        most = self.engine.max_num_batched_tokens
        decodes = len(self._decodes)
        if decodes == 0:
            return most
        left_s = self.engine.itl_target_s - self._decode_estimate(decodes)
        rows = most - decodes
        if self._row_s > 0:
            rows = min(rows, int(max(left_s, 0.0) / self._row_s))
        return max(rows, min(MIN_PREFILL_ROWS, most))

    def _sampled(self, request: SimulatedRequest, alone: bool) -> None:
        self._prefills.remove((request, alone))
        self._listener.sampled_first(self, request)
        if not alone:
            self._slots -= 1
        elif request.output_tokens > 1:
            self._decode(request)
        else:
            self._finish(request, decoded=False)

    def _decode(self, request: SimulatedRequest) -> None:
        request.ends_at_step = self._decode_steps + request.output_tokens - 1
        self._context_tokens += request.prompt_tokens + 1
        heapq.heappush(self._decodes, (request.ends_at_step, request.number, request))

    def _finish(self, request: SimulatedRequest, *, decoded: bool = True) -> None:
        if decoded:
            self._context_tokens -= request.total_tokens
        self._slots -= 1
        self._kv_tokens -= request.total_tokens
        self._let_go(request)
        self._listener.finished(self, request)
        self._grant()

    def _grant(self) -> None:
        while self._awaiting and self._admits(self._awaiting[0][0], True):
            request, granted = self._awaiting.popleft()
            request.received_cached = self._hit(request)
            granted()

    # --- The prefix cache

    def _hit(self, request: SimulatedRequest) -> int:
        """Tokens of an admitted request that are here already; one is computed in any case."""
        most = (request.prompt_tokens - 1) // self.engine.block_tokens
        held = self.cache.match(request.block_hashes, most)
        self._held[request.number] = [*held]
        self.cache.evict(self.engine.kv_tokens - self._kv_tokens)
        return len(held) * self.engine.block_tokens

    def _know(self, request: SimulatedRequest, tokens: int) -> None:
        """The KV of its first tokens is here."""
        held = self._held[request.number]
        full = request.block_hashes[: tokens // self.engine.block_tokens]
        held += [hash if self.cache.insert(hash) else None for hash in full[len(held) :]]

    def _let_go(self, request: SimulatedRequest) -> None:
        self.cache.release([hash for hash in self._held.pop(request.number) if hash is not None])
        self.cache.evict(self.engine.kv_tokens - self._kv_tokens)

    # --- The engine's own prediction, for the chunk beside decodes

    def _observe(self, decodes: int, rows: int, seconds: float) -> None:
        if decodes and not rows:
            self._average_decode(decodes, seconds)
        if rows:
            prefill_s = max(seconds - self._decode_estimate(decodes), 0.1 * seconds) / rows
            self._row_s = prefill_s if self._row_s == 0 else self._row_s + 0.1 * (prefill_s - self._row_s)

    def _average_decode(self, decodes: int, seconds: float) -> None:
        bucket = decodes.bit_length()
        before = self._decode_s.get(bucket, seconds)
        self._decode_s[bucket] = before + 0.1 * (seconds - before)

    def _decode_estimate(self, decodes: int) -> float:
        if decodes == 0 or not self._decode_s:
            return 0.0
        bucket = decodes.bit_length()
        return self._decode_s[min(self._decode_s, key=lambda each: (abs(each - bucket), each))]
