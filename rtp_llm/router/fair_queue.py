"""FairQueue: who waits for a worker, and whose turn it is.

Of the tenants that wait, the one that was served least by its weight; of its own requests the one of the least priority value,
then the earliest. Source: virtual token counters, Sheng et al., Fairness in Serving Large Language Models, OSDI 2024.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar

from rtp_llm.router.placement.ranking import Ranking

OUTPUT_COST = 2.0  # of a token that was sampled, against 1 of a prompt's: the paper's


class Waiter(Protocol):
    """None of this changes while it waits."""

    @property
    def tenant(self) -> str: ...

    @property
    def priority(self) -> int: ...

    @property
    def arrival(self) -> int:
        """Unique."""

    @property
    def new_tokens(self) -> int:
        """Of the prompt, to be computed."""


WaiterT = TypeVar("WaiterT", bound=Waiter)


class TenantQueue(Generic[WaiterT]):
    """Those of one tenant that wait."""

    def __init__(self) -> None:
        self._turns: list[tuple[int, int]] = []  # priority, arrival
        self._waiters: dict[int, WaiterT] = {}  # by arrival
        self._tokens = Counter[int]()  # by priority
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._turns)

    @property
    def first(self) -> WaiterT:
        """REQUIRES: not empty."""
        return self._waiters[self._turns[0][1]]

    def put(self, waiter: WaiterT) -> None:
        insort(self._turns, (waiter.priority, waiter.arrival))
        self._waiters[waiter.arrival] = waiter
        self._count(waiter, waiter.new_tokens)

    def remove(self, waiter: WaiterT) -> bool:
        """Whether it was there."""
        if self._waiters.pop(waiter.arrival, None) is None:
            return False
        del self._turns[bisect_left(self._turns, (waiter.priority, waiter.arrival))]
        self._count(waiter, -waiter.new_tokens)
        return True

    def tokens_before(self, priority: int) -> int:
        """Of those that are served before one that comes now."""
        return sum(tokens for each, tokens in self._tokens.items() if each <= priority)

    def _count(self, waiter: WaiterT, tokens: int) -> None:
        self.num_tokens += tokens
        self._tokens[waiter.priority] += tokens
        if self._tokens[waiter.priority] == 0:
            del self._tokens[waiter.priority]


class FairQueue(Generic[WaiterT]):
    """A turn, a waiter more or less and a charge cost O(log n) of the tenants that wait (and of a tenant's waiters)."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        """`weights` of tenants; of those that it doesn't name 1."""
        self._weights = weights
        self._served: dict[str, float] = {}  # by tenant: what it was charged by its weight, and what it was lifted by
        self._queues: dict[str, TenantQueue[WaiterT]] = {}  # of the tenants that wait
        self._tenants = Ranking()  # the same, least served first
        self._last_to_leave = ""  # of the tenants
        self._num_waiting = self._num_tokens = 0
        self._weight_waiting = 0.0

    def reweigh(self, weights: Mapping[str, float]) -> None:
        """What was charged before stays as it was."""
        self._weights = weights
        self._weight_waiting = sum(map(self._weight, self._queues))

    def __len__(self) -> int:
        return self._num_waiting

    @property
    def num_tokens(self) -> int:
        """Of all that wait, to be computed."""
        return self._num_tokens

    @property
    def first(self) -> WaiterT | None:
        """Whose turn it is."""
        return self._queues[self._tenants[0]].first if self._queues else None

    def num_waiting(self, tenant: str) -> int:
        return len(self._queues.get(tenant, ()))

    def put(self, waiter: WaiterT) -> None:
        """Who comes when none of its tenant waits has banked nothing: it counts as served as the least served that waits."""
        tenant = waiter.tenant
        if tenant not in self._queues:
            least = self._tenants.best if self._queues else self._served.get(self._last_to_leave, 0.0)
            self._served[tenant] = max(self._served.get(tenant, 0.0), least)
            self._queues[tenant] = TenantQueue()
            self._tenants.put(tenant, self._served[tenant])
            self._weight_waiting += self._weight(tenant)
        self._queues[tenant].put(waiter)
        self._num_waiting += 1
        self._num_tokens += waiter.new_tokens

    def remove(self, waiter: WaiterT) -> None:
        """Nothing if it doesn't wait."""
        queue = self._queues.get(waiter.tenant)
        if queue is None or not queue.remove(waiter):
            return
        self._num_waiting -= 1
        self._num_tokens -= waiter.new_tokens
        if not queue:
            del self._queues[waiter.tenant]
            self._tenants.remove(waiter.tenant)
            self._last_to_leave = waiter.tenant
            self._weight_waiting -= self._weight(waiter.tenant)
            if not self._queues:
                self._weight_waiting = 0.0  # nothing is left of what rounding left

    def charge(self, tenant: str, tokens: float) -> None:
        """It was served so much, waiting or not."""
        self._served[tenant] = served = self._served.get(tenant, 0.0) + tokens / self._weight(tenant)
        if tenant in self._queues:
            self._tenants.put(tenant, served)

    def tokens_ahead(self, tenant: str, priority: int) -> float:
        """About how many prompt tokens are computed before a request that comes now has its turn: its tenant's own, and
        meanwhile the others' by their weights."""
        queue = self._queues.get(tenant)
        if queue is None:
            return 0.0
        own, weight = queue.tokens_before(priority), self._weight(tenant)
        return own + min(self._num_tokens - queue.num_tokens, own * (self._weight_waiting - weight) / weight)

    def _weight(self, tenant: str) -> float:
        return self._weights.get(tenant, 1.0)
