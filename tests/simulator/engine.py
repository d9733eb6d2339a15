"""A toy engine: continuous batching, chunked prefill, prefix cache, preemption; its model is a hash of the tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.simulator.pool import BLOCK_TOKENS, NUM_GROUPS, Pool, Slots, num_blocks, states_of
from tests.simulator.world import Process, Violation, World

STOP, LENGTH, CANCELLED = 1, 2, 3
STEP_S = (0.004, 0.02)
CHUNK_TOKENS = 8


def next_token(state: int, position: int, max_tokens: int) -> tuple[int, int]:
    """(token, finish) that the model gives after `state`."""
    token = (state >> 20) % 97
    if token == 0:
        return token, STOP
    return token, LENGTH if position + 1 >= max_tokens else 0


def answer_of(prompt: list[int], max_tokens: int) -> list[tuple[int, int]]:
    """The undisturbed run."""
    tokens, answer = list(prompt), []
    while True:
        token, finish = next_token(states_of(tokens)[-1], len(answer), max_tokens)
        answer.append((token, finish))
        tokens.append(token)
        if finish:
            return answer


@dataclass(eq=False)
class Sequence:
    key: Any
    prompt: list[int]
    output: list[int]
    max_tokens: int
    is_sender: bool
    blocks: list[int] = field(default_factory=list)
    states: list[int] = field(default_factory=list)
    computed: int = 0  # tokens whose content is stored
    cached: int = 0
    cancelled: bool = False
    holds_slot: bool = False  # from its admission or grant to its end, preempted or not

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.output


class Engine:
    """`listen(event, **fields)` hears what a native engine's listener hears, `emit(key, position, token, finish)` gets the
    outputs."""

    def __init__(
        self,
        world: World,
        process: Process,
        pool: Pool,
        slots: Slots,
        listen: Callable[..., None],
        emit: Callable[..., None],
    ):
        self.world, self.process, self.pool, self.slots = world, process, pool, slots
        self.listen, self.emit = listen, emit
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.held: dict[Any, Sequence] = {}  # sender sequences until release
        self.preemptions = 0
        self.steps_with_preemption_chance = 0.0
        self._stepping = False
        self._claims: Sequence | None = None  # stood first in the queue and found no slot

    # --- what the machines ask for

    def add(self, spec: Any, *, is_sender: bool) -> None:
        sequence = Sequence(spec.key, list(spec.prompt), list(spec.output), spec.sampling.max_tokens, is_sender)
        if is_sender:
            self.held[spec.key] = sequence
        self.waiting.append(sequence)
        self._wake()

    def join(self, spec: Any, blocks: list[int]) -> None:
        sequence = Sequence(
            spec.key, list(spec.prompt), list(spec.output), spec.sampling.max_tokens, False, list(blocks)
        )
        sequence.states = states_of(sequence.tokens)
        sequence.computed = len(sequence.tokens) - 1
        sequence.holds_slot = True
        self._check_content(sequence, "joined")
        self._hash_full_blocks(sequence)
        self.running.append(sequence)
        self._wake()

    def cancel(self, key: Any) -> None:
        for sequence in [*self.waiting, *self.running]:
            if sequence.key == key:
                sequence.cancelled = True
                self._wake()

    def release(self, key: Any) -> None:
        sequence = self.held.pop(key, None)
        if sequence is None:
            return
        sequence.cancelled = True
        self._drop(sequence)
        self._give_back(sequence)
        self._wake()

    def queued_tokens(self) -> int:
        return sum(len(each.tokens) - each.computed for each in [*self.waiting, *self.running] if not each.cancelled)

    def idle(self) -> bool:
        return not (self.waiting or self.running or self.held)

    # --- the step loop

    def _wake(self) -> None:
        if not self._stepping:
            self._stepping = True
            self.world.after(self.world.between(0.0, 0.002), self.process, self._step)

    def _step(self) -> None:
        self._sweep()
        self._admit()
        if len(self.running) > self.slots.total:
            raise Violation(f"{len(self.running)} sequences run on {self.slots.total} slots")
        if not self.running:
            self._stepping = bool(self.waiting)
            if self.waiting:
                self.world.after(0.02, self.process, self._step)
            return
        duration = self.world.between(*STEP_S)
        budget = CHUNK_TOKENS
        sampled: list[Sequence] = []
        for sequence in list(self.running):
            if sequence not in self.running:
                continue  # preempted for an earlier one
            left = len(sequence.tokens) - sequence.computed
            if left > 1 or not sequence.output:
                chunk = min(left, budget)
                if chunk == 0:
                    continue
                budget -= chunk
            else:
                chunk = 1
            if not self._make_room(sequence, sequence.computed + chunk):
                continue
            self._compute(sequence, chunk, duration)
            if sequence.computed == len(sequence.tokens):
                sampled.append(sequence)
        self.world.after(duration, self.process, lambda: self._sample(sampled))

    def _sample(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            self._hash_full_blocks(sequence)
            if sequence.cancelled or sequence not in self.running:
                continue
            position = len(sequence.output)
            token, finish = next_token(sequence.states[-1], position, sequence.max_tokens)
            if sequence.is_sender:
                self._drop(sequence)  # its blocks stay held
                self.listen("prefilled", key=sequence.key, position=position, token=token, finish=finish)
                continue
            self.emit(sequence.key, position, token, finish)
            sequence.output.append(token)
            sequence.states = states_of(sequence.tokens)
            if finish:
                self._drop(sequence)
                self._give_back(sequence)
                self.listen("finished", key=sequence.key, finish=finish)
        if self.pool.freed:
            self.pool.freed = False
            self.listen("room")
        self._step()

    def _sweep(self) -> None:
        for sequence in [*self.waiting, *self.running]:
            if sequence.cancelled:
                self._drop(sequence)
                if not sequence.is_sender:
                    self._give_back(sequence)
                    self.listen("finished", key=sequence.key, finish=CANCELLED)

    def _admit(self) -> None:
        while self.waiting:
            sequence = self.waiting[0]
            if not sequence.holds_slot:
                sequence.holds_slot = self.slots.admit()
                self._claims = None if sequence.holds_slot else sequence
            if not sequence.holds_slot:
                return
            sequence.states = states_of(sequence.tokens)
            hits = self.pool.match(sequence.states, (len(sequence.tokens) - 1) // BLOCK_TOKENS)
            fresh = self.pool.take(num_blocks(len(sequence.tokens)) - len(hits), "used")
            if fresh is None:
                self.pool.release(hits)
                if self.pool.available() == len(self.pool.blocks) and self.slots.taken == 1:
                    raise Violation(f"{sequence.key}: an empty engine has no room for {len(sequence.tokens)} tokens")
                return
            self.waiting.pop(0)
            sequence.blocks = hits + fresh
            sequence.computed = sequence.cached = len(hits) * BLOCK_TOKENS
            self.running.append(sequence)
            if sequence.is_sender:
                self.listen(
                    "scheduled",
                    key=sequence.key,
                    blocks=list(sequence.blocks),
                    tokens=len(sequence.tokens),
                    cached_tokens=sequence.cached,
                )

    def _compute(self, sequence: Sequence, chunk: int, duration: float) -> None:
        first = sequence.computed
        for group in range(NUM_GROUPS):
            delay = duration * (group + 1) / (NUM_GROUPS + 1)
            if not sequence.is_sender:
                self._store(sequence, group, first, chunk)
                continue
            generations = [self.pool.blocks[number].generation for number in sequence.blocks]

            def stored(group: int = group, generations: list[int] = generations) -> None:
                if [self.pool.blocks[number].generation for number in sequence.blocks] != generations:
                    return  # released after a cancel
                self._store(sequence, group, first, chunk)
                if not sequence.cancelled:
                    self.listen("layers", key=sequence.key, group=group, first_token=first, tokens=chunk)

            self.world.after(delay, self.process, stored)
        sequence.computed += chunk

    def _store(self, sequence: Sequence, group: int, first: int, count: int) -> None:
        for position in range(first, first + count):
            block = self.pool.blocks[sequence.blocks[position // BLOCK_TOKENS]]
            block.content[group, position] = sequence.states[position]

    def _make_room(self, sequence: Sequence, tokens: int) -> bool:
        """Blocks for `tokens`; preempts the youngest others, then `sequence` itself."""
        missing = num_blocks(tokens) - len(sequence.blocks)
        if missing > 0 and self.world.chance(self.steps_with_preemption_chance):
            self._preempt(sequence)
            return False
        while missing > 0:
            fresh = self.pool.take(missing, "used")
            if fresh is not None:
                sequence.blocks += fresh
                return True
            victims = [each for each in self.running if not each.is_sender and each.output]
            victim = victims[-1] if victims else sequence
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.preemptions += 1
        self.running.remove(sequence)
        self._hash_full_blocks(sequence)
        self._give_back(sequence)
        sequence.computed = 0
        self.waiting.insert(0, sequence)

    def _drop(self, sequence: Sequence) -> None:
        """Out of every queue, without a slot."""
        if self._claims is sequence:
            self._claims, self.slots.claimed = None, False
        if sequence.holds_slot:
            sequence.holds_slot = False
            self.slots.give_back()
            self.pool.freed = True
        for queue in (self.waiting, self.running):
            if sequence in queue:
                queue.remove(sequence)

    def _give_back(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks = []

    def _hash_full_blocks(self, sequence: Sequence) -> None:
        for index, number in enumerate(sequence.blocks):
            end = (index + 1) * BLOCK_TOKENS
            if end > sequence.computed:
                return
            content = self.pool.blocks[number].content
            if all((group, end - 1) in content for group in range(NUM_GROUPS)):
                self.pool.insert(number, sequence.states[end - 1])

    def _check_content(self, sequence: Sequence, what: str) -> None:
        for position in range(sequence.computed):
            content = self.pool.blocks[sequence.blocks[position // BLOCK_TOKENS]].content
            for group in range(NUM_GROUPS):
                if content.get((group, position)) != sequence.states[position]:
                    found = content.get((group, position))
                    raise Violation(
                        f"{sequence.key} {what} on wrong KV at position {position}, layer group {group}: "
                        f"{found}, expected {sequence.states[position]}"
                    )
