"""Blocks with contents: every touch is checked against what the block is at that moment."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from tests.simulator.world import Violation

BLOCK_TOKENS = 4
NUM_GROUPS = 2  # layer groups of one layer each
MASK = (1 << 64) - 1


def extend(state: int, token: int) -> int:
    """Hash of a token run; what the toy model stores at a position, and computes the next token from."""
    return (state * 6364136223846793005 + (token + 1) * 1442695040888963407) & MASK


def states_of(tokens: list[int]) -> list[int]:
    state, states = 7, []
    for token in tokens:
        state = extend(state, token)
        states.append(state)
    return states


def num_blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)


@dataclass
class Block:
    state: str = "free"  # free, used, granted, quarantined, cached
    references: int = 0
    generation: int = 0  # of its content's owner
    hash: int | None = None
    content: dict[tuple[int, int], int] = field(default_factory=dict)  # (layer group, position) -> state


class Slots:
    """Sequences that may run at once: as csrc/kv/slot_pool.h."""

    def __init__(self, total: int) -> None:
        self.total, self.taken, self.claimed = total, 0, False

    def admit(self) -> bool:
        """For the first of the engine's queue; it claims the next one if there is none."""
        self.claimed = self.taken == self.total
        self.taken += not self.claimed
        return not self.claimed

    def grant(self) -> bool:
        if self.taken + self.claimed >= self.total:
            return False
        self.taken += 1
        return True

    def give_back(self) -> None:
        self.taken -= 1
        if self.taken < 0:
            raise Violation("more slots are given back than were taken")


class Pool:
    def __init__(self, size: int) -> None:
        self.blocks = [Block() for _ in range(size)]
        self.free = list(range(size))
        self.cached: OrderedDict[int, None] = OrderedDict()  # evictable, oldest first
        self.by_hash: dict[int, int] = {}
        self.freed = False  # since somebody looked

    def available(self) -> int:
        return len(self.free) + len(self.cached)

    def count(self, state: str) -> int:
        return sum(block.state == state for block in self.blocks)

    def take(self, count: int, state: str) -> list[int] | None:
        if self.available() < count:
            return None
        taken = []
        for _ in range(count):
            if not self.free:
                victim, _ = self.cached.popitem(last=False)
                self._forget(victim)
                self.free.append(victim)
            number = self.free.pop()
            block = self.blocks[number]
            block.state, block.references = state, int(state == "used")
            block.generation += 1
            block.content.clear()
            taken.append(number)
        return taken

    def match(self, states: list[int], max_blocks: int) -> list[int]:
        """References the cached run of full blocks from the start."""
        found: list[int] = []
        for index in range(min(len(states) // BLOCK_TOKENS, max_blocks)):
            number = self.by_hash.get(states[(index + 1) * BLOCK_TOKENS - 1])
            if number is None:
                break
            block = self.blocks[number]
            block.references += 1
            block.state = "used"
            self.cached.pop(number, None)
            self._check_prefix(number, states, index)
            found.append(number)
        return found

    def release(self, numbers: list[int]) -> None:
        for number in numbers:
            block = self.blocks[number]
            if block.state != "used" or block.references < 1:
                raise Violation(f"block {number} released while {block.state}, {block.references} references")
            block.references -= 1
            if block.references == 0:
                self.freed = True
                if block.hash is not None:
                    block.state = "cached"
                    self.cached[number] = None
                else:
                    self._free(number)

    def insert(self, number: int, content_hash: int) -> None:
        """A full block whose content is known."""
        if content_hash not in self.by_hash and self.blocks[number].hash is None:
            self.by_hash[content_hash] = number
            self.blocks[number].hash = content_hash

    def join(self, numbers: list[int]) -> None:
        for number in numbers:
            self._expect(number, "granted")
            self.blocks[number].state, self.blocks[number].references = "used", 1

    def quarantine(self, numbers: list[int]) -> None:
        for number in numbers:
            self._expect(number, "granted")
            self.blocks[number].state = "quarantined"

    def free_quarantined(self, numbers: list[int]) -> None:
        for number in numbers:
            self._expect(number, "quarantined")
            self._free(number)

    def _expect(self, number: int, state: str) -> None:
        if self.blocks[number].state != state:
            raise Violation(f"block {number} is {self.blocks[number].state}, not {state}")

    def _free(self, number: int) -> None:
        block = self.blocks[number]
        block.state, block.references = "free", 0
        self._forget(number)
        self.free.append(number)
        self.freed = True

    def _forget(self, number: int) -> None:
        block = self.blocks[number]
        if block.hash is not None:
            del self.by_hash[block.hash]
            block.hash = None
        block.state = "free"

    def _check_prefix(self, number: int, states: list[int], index: int) -> None:
        content = self.blocks[number].content
        for position in range(index * BLOCK_TOKENS, (index + 1) * BLOCK_TOKENS):
            for group in range(NUM_GROUPS):
                if content.get((group, position)) != states[position]:
                    raise Violation(f"cached block {number} holds wrong content at position {position}")
