"""How much of their prompts requests find in prefix caches, by policy; beside an oracle, and one cache of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rtp_llm.router.placement import DECODE, PREFILL, CacheReset, Placement, PlacementQuery, Policy, Snapshot
from rtp_llm.router.placement.prefix_aware import PrefixAware
from rtp_llm.simulation.clock import Clock
from rtp_llm.simulation.cluster import SimulatedCluster
from rtp_llm.simulation.request import SimulatedRequest
from rtp_llm.simulation.worker import Engine


@dataclass(frozen=True)
class Hits:
    """Parts of all prompt tokens."""

    computed: float  # found where the prompt was computed
    received: float  # found where it was received
    median_ttft_s: float


class Oracle(PrefixAware):
    """The same choice by what the caches hold at this moment: no event tells it anything, and nothing comes late."""

    watches_caches = False

    def __init__(self) -> None:
        super().__init__()
        self.cluster: SimulatedCluster

    def choose(self, snapshot: Snapshot, query: PlacementQuery) -> Placement | None:
        for id, worker in self.cluster.workers.items():
            self._index.observe([CacheReset(id, b"".join(worker.cache.known))])
        return super().choose(snapshot, query)


def run(
    policy: Policy, engine: Engine, num_prefill: int, num_decode: int, requests: Sequence[SimulatedRequest]
) -> Hits:
    """To the end of all. `num_decode` 0: an undivided fleet."""
    pools = {f"p{i}": PREFILL for i in range(num_prefill)} | {f"d{i}": DECODE for i in range(num_decode)}
    cluster = SimulatedCluster(policy, pools, engine, Clock())
    if isinstance(policy, Oracle):
        policy.cluster = cluster
    cluster.ask([replace(request) for request in requests])
    cluster.clock.run()
    return _hits(cluster.requests)


def most(requests: Sequence[SimulatedRequest], block_tokens: int) -> float:
    """What one cache that never forgets would hold of the prompts."""
    seen: set[bytes] = set()
    found = 0
    for request in requests:
        for hash in request.block_hashes[: (request.prompt_tokens - 1) // block_tokens]:
            if hash not in seen:
                break
            found += block_tokens
        seen.update(request.block_hashes)
    return found / sum(request.prompt_tokens for request in requests)


def _hits(requests: Sequence[SimulatedRequest]) -> Hits:
    done = [request for request in requests if request.is_finished]
    if len(done) < len(requests):
        raise AssertionError(f"{len(requests) - len(done)} of {len(requests)} requests were never answered")
    total = sum(request.prompt_tokens for request in done)
    return Hits(
        computed=sum(request.cached for request in done) / total,
        received=sum(request.received_cached for request in done) / total,
        median_ttft_s=sorted(request.ttft for request in done)[len(done) // 2],
    )
