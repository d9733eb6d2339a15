"""Faults at random moments, drawn from a seed: whatever comes together, each answer is the undisturbed one."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.streams import AnswerStream
from tests.cluster.workload import Answer, Body
from tests.faults.rig import EIGHT

NUM_REQUESTS = 64
NUM_FAULTS = 12
TOKENS_BETWEEN = (100, 500)
# Requests may meet more faults than a deployment would let pass.
PATIENT = {"router.max_losses": 1000}
WORLDS: dict[str, dict[str, Any]] = {
    "plenty": {},
    "tcp": {"transfer.mode": "tcp"},
    # Room for two requests a worker: grants wait or are refused, sequences are preempted.
    "scarce": {"engine.num_kv_blocks": 140, "engine.kv_cache_bytes": 0},
    "forgetful": {"handover.lease_s": 1.25, "handover.memory_s": 2.0, "handover.router_expiry_s": 3.0},
}


class Walk:
    """Eight requests at a time, and one fault after the other."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster = cluster
        self.draw = random.Random(seed)
        self.streams: list[AnswerStream] = []
        self.history: list[str] = []

    async def answers(self) -> list[Answer]:
        gate = asyncio.Semaphore(8)

        async def one(body: Body) -> Answer:
            async with gate:
                stream = self.cluster.stream(body)
                self.streams.append(stream)
                return Answer.of(await stream.finished())

        return list(await asyncio.gather(*(one(EIGHT[number % 8]) for number in range(NUM_REQUESTS))))

    async def faults(self) -> None:
        for _ in range(NUM_FAULTS):
            await self._more_tokens(self.draw.randrange(*TOKENS_BETWEEN))
            worker = self.draw.choice(sorted(worker.id for worker in self.cluster.workers))
            fault = self.draw.choice(("kill", "stop", "break_session", "break_peers", "leave"))
            self.history.append(f"{fault} {worker}")
            await getattr(self, f"_{fault}")(worker)

    async def _more_tokens(self, count: int) -> None:
        """Until the clients have got so many more, or all answers are there."""
        goal = self._tokens() + count
        await self.cluster.until(lambda: self._tokens() >= goal or self._all_ended())

    def _tokens(self) -> int:
        return sum(len(stream.tokens) for stream in self.streams)

    def _all_ended(self) -> bool:
        return len(self.streams) >= NUM_REQUESTS and all(stream.ended for stream in self.streams)

    async def _kill(self, worker: str) -> None:
        await self.cluster.kill(worker)
        await self.cluster.replace(worker)

    async def _stop(self, worker: str) -> None:
        self.cluster[worker].stop()
        await self._more_tokens(self.draw.randrange(*TOKENS_BETWEEN))
        self.cluster[worker].resume()

    async def _break_session(self, worker: str) -> None:
        self.cluster.proxies(worker).for_router.break_connections()

    async def _break_peers(self, worker: str) -> None:
        self.cluster.proxies(worker).for_peers.break_connections()

    async def _leave(self, _: str) -> None:
        """A client of its own leaves: those of `answers` stay."""
        stream = self.cluster.stream(self.draw.choice(EIGHT))
        await self._more_tokens(self.draw.randrange(1, 50))
        await stream.leave()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("world", WORLDS)
async def test_answers_are_exact_whatever_fails(
    world: str, seed: int, undisturbed: list[Answer], tmp_path: Path
) -> None:
    settings = PATIENT | WORLDS[world]
    async with Cluster.running(prefill=2, decode=2, log_dir=tmp_path, settings=settings, proxied=True) as cluster:
        walk = Walk(cluster, seed)
        answers, _ = await asyncio.gather(walk.answers(), walk.faults())
        assert answers == undisturbed * (NUM_REQUESTS // 8), walk.history
        await cluster.at_rest()
