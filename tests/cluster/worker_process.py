"""WorkerProcess: `python -m rtp_llm.worker` as a child that never outlives the test."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import grpc

from rtp_llm.directory import Member
from rtp_llm.wire.session import WORKER_SERVICE
from rtp_llm.wire.v1.router_pb2 import MetricsReply, MetricsRequest
from tests.cluster.figures import Figures

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 60.0
WORKER = "rtp_llm.worker"


class WorkerProcess:
    """A running worker. Its stdin is its life line: it ends when this process does, however that ends."""

    def __init__(self, process: asyncio.subprocess.Process, hello: dict[str, Any]) -> None:
        self.id: str = hello["id"]
        self.pool: str = hello["pool"]
        self.epoch: int = hello["epoch"]
        self.address: str = hello["address"]
        self._process = process
        self._channel: grpc.aio.Channel | None = None

    @classmethod
    async def start(
        cls, pool: str, worker_id: str, settings: Mapping[str, Any], log: BinaryIO, module: str = WORKER
    ) -> WorkerProcess:
        """Returns when it listens. `settings` by path; its log goes to `log`; `module` is one like rtp_llm.worker.

        Raises:
            WorkerFailedError: it ended instead.
        """
        process = await spawn(pool, worker_id, settings, log, module)
        try:
            assert process.stdout is not None
            line = await asyncio.wait_for(process.stdout.readline(), START_TIMEOUT_S)
            if not line:
                raise WorkerFailedError(f"worker {worker_id} ended with {await process.wait()}")
        except BaseException:
            await _end(process)
            raise
        return cls(process, json.loads(line))

    @property
    def is_running(self) -> bool:
        return self._process.returncode is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def member(self, address: str | None = None) -> Member:
        """How a membership names it; `address`: of a proxy before it."""
        return Member(id=self.id, epoch=self.epoch, pool=self.pool, address=address or self.address)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def stop(self) -> None:
        """SIGSTOP: it neither runs nor ends."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    async def kill(self) -> None:
        """kill -9, and its end."""
        await self.close()

    async def exit_status(self, timeout_s: float = 30.0) -> int:
        return await asyncio.wait_for(self._process.wait(), timeout_s)

    async def figures(self, timeout_s: float = 10.0) -> Figures:
        """Its metrics, asked of itself and not through a router."""
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)])
        call = self._channel.unary_unary(
            f"/{WORKER_SERVICE}/Metrics", MetricsRequest.SerializeToString, MetricsReply.FromString
        )
        reply: MetricsReply = await call(MetricsRequest(), timeout=timeout_s)
        return Figures.parse(reply.text.decode())

    async def close(self) -> None:
        """End it, if it runs. Idempotent."""
        if self._channel is not None:
            channel, self._channel = self._channel, None
            await channel.close()
        await _end(self._process)


class WorkerFailedError(Exception):
    """A worker ended before it listened."""


async def spawn(
    pool: str, worker_id: str, settings: Mapping[str, Any], log: Any, module: str = WORKER
) -> asyncio.subprocess.Process:
    """The bare process: stdin and stdout are pipes, stderr is `log`."""
    flags = [flag for path, value in settings.items() for flag in ("--set", f"{path}={value}")]
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, "--pool", pool, "--id", worker_id, "--parent-pipe", *flags),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=log,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])},
    )


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
