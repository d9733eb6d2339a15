"""Eight streams over a cluster, and what they have to end as."""

from __future__ import annotations

import asyncio

from rtp_llm.router.fleet import RemoteWorker
from tests.cluster.cluster import Cluster
from tests.cluster.figures import Figures
from tests.cluster.worker_process import WorkerProcess
from tests.cluster.workload import BACKEND, Answer, Body, bodies

# Ten to fifteen steps of prefill and a hundred of decode each, on a GPU a thousand: all phases last long enough to be met.
ANSWER_TOKENS = (96, 112, 128) if BACKEND == "cpu" else (880, 960, 1040)
EIGHT = bodies(8, seed=7, prompt_tokens=(640, 700, 800, 900), max_tokens=ANSWER_TOKENS)


class EightStreams:
    """All eight at once, on `cluster`."""

    def __init__(self, cluster: Cluster, todo: list[Body] | None = None) -> None:
        self.cluster = cluster
        self.bodies = EIGHT if todo is None else todo
        self.streams = [cluster.stream(body) for body in self.bodies]

    @property
    def num_running(self) -> int:
        return sum(not stream.ended for stream in self.streams)

    async def answers(self) -> list[Answer]:
        """When all have ended; an error in any fails."""
        return [Answer.of(stream) for stream in await asyncio.gather(*(s.finished() for s in self.streams))]

    # --- Phases, as they are observed. Each returns while the phase lasts.

    async def computing(self, worker: WorkerProcess) -> None:
        """`worker` computes a prompt, and others wait there."""

        def holds(figures: Figures) -> bool:
            computed = figures.value("prompt_tokens_computed_total")
            return computed > 0 and figures.value("queued_tokens") > 0

        await self.cluster.until_figures(worker, holds)

    async def pushing(self, worker: WorkerProcess) -> None:
        """KV of `worker` is on its way, and not all of it."""

        def holds(figures: Figures) -> bool:
            sent = figures.value("transfer_bytes_total", direction="sent")
            return sent > 0 and figures.value("queued_tokens") > 0

        await self.cluster.until_figures(worker, holds)

    async def receiving(self, worker: WorkerProcess) -> None:
        """`worker` holds grants that KV is coming for."""

        def holds(figures: Figures) -> bool:
            received = figures.value("transfer_bytes_total", direction="received")
            return received > 0 and figures.value("kv_blocks", state="granted") > 0

        await self.cluster.until_figures(worker, holds)

    async def decoding(self, worker: WorkerProcess) -> None:
        """`worker` decodes, and clients have got tokens beyond the first."""

        def holds() -> bool:
            return self._remote(worker).load.running > 0 and any(
                len(s.tokens) > 1 and not s.ended for s in self.streams
            )

        await self.cluster.until(holds)

    def _remote(self, worker: WorkerProcess) -> RemoteWorker:
        return next(each for each in self.cluster.service.fleet.live() if each.key.id == worker.id)
