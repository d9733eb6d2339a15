"""Cluster: worker processes, a router in this process, HTTP on a port that the system draws. No Ray.

    client (httpx) ──HTTP──▶ router (this process) ──[proxy]──▶ workers (processes of their own)
                                                   prefill-0, … ──[proxy]──▶ decode-0, …

    async with Cluster.running(prefill=2, decode=2, log_dir=tmp_path) as cluster:
        streams = [cluster.stream(body) for body in bodies]
        await cluster.until(lambda: any(s.tokens for s in streams))
        await cluster.kill("decode-0")
        …
        await cluster.at_rest()

`proxied=True` puts two proxies before each worker's session server, one for the router and one for peers, so that tests can
break connections; `proxy=OldProtocolProxy` makes them ones through which both ends look like the version before. Leaving the
block ends every process, whatever happened; an error in the log of the router or of a worker fails the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from rtp_llm.config import Config, load_config
from rtp_llm.directory import StaticMembership
from rtp_llm.router.ingress import build_ingress
from rtp_llm.router.service import Service
from tests.cluster.figures import Figures
from tests.cluster.streams import AnswerStream
from tests.cluster.worker_process import WORKER, WorkerProcess
from tests.cluster.workload import BACKEND, BLOCK_TOKENS
from tests.wire.proxy import Proxy

# Small enough to start fast; a prompt takes many steps, so that it can be hit in the middle.
SETTINGS: dict[str, Any] = {
    "engine.device": BACKEND,
    "engine.block_tokens": BLOCK_TOKENS,
    "engine.num_threads": 1,
    "engine.kv_cache_bytes": 64 << 20,
    "engine.max_num_batched_tokens": 64,
    "engine.layers_per_message": 2,
    "transfer.mode": "shm",
    "handover.router_expiry_s": 4.0,
}
WAIT_S = 60.0
LOOK_AGAIN_S = 0.25
NOT_OURS = "opentelemetry."  # loggers that say what is wrong with a collector


class Cluster:
    """Made by `running`. Workers are `cluster["prefill-0"]`, …; `cluster.service` is the router."""

    def __init__(
        self, config: Config, overrides: Mapping[str, Any], log_dir: Path, proxy: Callable[[str], Proxy] | None
    ) -> None:
        self.config = config
        self.workers: list[WorkerProcess] = []
        self._overrides = overrides
        self._log_dir = log_dir
        self._proxy = proxy
        self._worker_module = WORKER
        self._proxies: dict[str, Proxies] = {}  # by worker
        self._membership = StaticMembership()
        self._stack = contextlib.AsyncExitStack()
        self._streams: list[AnswerStream] = []
        self._waiters: set[asyncio.Event] = set()
        self.service: Service
        self.url = ""
        self.client: httpx.AsyncClient

    @classmethod
    @contextlib.asynccontextmanager
    async def running(
        cls,
        *,
        prefill: int = 1,
        decode: int = 1,
        log_dir: Path,
        settings: Mapping[str, Any] | None = None,
        proxied: bool = False,
        proxy: Callable[[str], Proxy] = Proxy,
        worker_module: str = WORKER,
    ) -> AsyncIterator[Cluster]:
        overrides = {**SETTINGS, **(settings or {})}
        cluster = cls(
            load_config(overrides=overrides, environ={}).with_token_read(),
            overrides,
            log_dir,
            proxy if proxied else None,
        )
        cluster._worker_module = worker_module
        names = [f"prefill-{i}" for i in range(prefill)] + [f"decode-{i}" for i in range(decode)]
        async with cluster._stack:
            started = await asyncio.gather(*(cluster._start(name) for name in names), return_exceptions=True)
            for each in started:
                if isinstance(each, BaseException):
                    raise each
            own_errors = cluster._stack.enter_context(_errors_here())
            await cluster._stack.enter_async_context(cluster._routing())
            yield cluster
        errors = own_errors + [line for name in names for line in _errors_in(log_dir / f"{name}.log")]
        assert not errors, "\n".join(errors)

    async def kill(self, worker_id: str) -> None:
        """kill -9. Connections to it are refused from here on, through its proxies too."""
        await self[worker_id].kill()
        if worker_id in self._proxies:
            await self._proxies[worker_id].close()

    async def replace(self, worker_id: str) -> None:
        """Another process takes the id of a worker that has ended; the router meets it when it has lost the old one."""
        await self._start(worker_id)
        self._announce()

    async def _start(self, worker_id: str) -> None:
        log = self._stack.enter_context((self._log_dir / f"{worker_id}.log").open("ab"))
        worker = await WorkerProcess.start(
            worker_id.split("-")[0], worker_id, self._overrides, log, self._worker_module
        )
        self._stack.push_async_callback(worker.close)
        self.workers = [*(w for w in self.workers if w.id != worker_id), worker]
        if self._proxy is not None:
            self._proxies[worker_id] = await Proxies.before(worker, self._stack, self._proxy)

    def _announce(self) -> None:
        proxies = self._proxies
        self._membership.set([w.member(proxies[w.id].for_router.address if proxies else None) for w in self.workers])

    @contextlib.asynccontextmanager
    async def _routing(self) -> AsyncIterator[None]:
        """The router and its HTTP endpoint, with a client of it."""
        self.service = Service(self.config, self._membership)
        self._announce()
        self.service.start()
        # asyncio turns Nagle's algorithm off only where a socket names its protocol; with it each answer waits 40 ms.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = _Server(
            uvicorn.Config(build_ingress(lambda: self.service), lifespan="off", log_level="warning", access_log=False)
        )
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        try:
            async with httpx.AsyncClient(
                base_url=self.url, timeout=WAIT_S, limits=limits, trust_env=False
            ) as self.client:
                assert await self.service.fleet.wait_ready(WAIT_S, len(self.workers)), "a worker didn't connect"
                for remote in self.service.fleet.live():
                    if remote.key.id in self._proxies:  # the router passes it on to senders
                        remote.hello.peer_address = self._proxies[remote.key.id].for_peers.address
                yield
        finally:
            await self.service.close()
            server.force_exit = server.should_exit = True
            await serving

    def __getitem__(self, worker_id: str) -> WorkerProcess:
        return next(worker for worker in self.workers if worker.id == worker_id)

    # --- What tests do.

    def stream(self, body: dict[str, Any]) -> AnswerStream:
        """A streamed completion; wakes `until` at each event."""
        stream = AnswerStream(body, self._wake).start(self.client)
        self._streams.append(stream)
        return stream

    def proxies(self, worker_id: str) -> Proxies:
        """What stands before the worker, in a cluster that is proxied."""
        return self._proxies[worker_id]

    # --- What tests wait for.

    async def until(self, condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
        """Until `condition` holds, asked after each event of a stream. A stream that ends with an error fails it."""
        event = asyncio.Event()
        self._waiters.add(event)

        async def wait() -> None:
            while not condition():
                assert not (errors := [stream.error for stream in self._streams if stream.error]), errors
                event.clear()
                await event.wait()

        try:
            await asyncio.wait_for(wait(), timeout_s)
        finally:
            self._waiters.discard(event)

    async def until_figures(
        self, worker: WorkerProcess, condition: Callable[[Figures], bool], timeout_s: float = WAIT_S
    ) -> Figures:
        """Until the worker's own figures meet `condition`: asked again as soon as it has answered."""

        async def wait() -> Figures:
            while not condition(figures := await worker.figures()):
                pass
            return figures

        return await asyncio.wait_for(wait(), timeout_s)

    async def at_rest(self, timeout_s: float = 15.0) -> None:
        """Until router and living workers have nothing running, in flight or held."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while left := await self.left_over():
            assert loop.time() < deadline, f"not at rest after {timeout_s:g} s: {left}"
            # Leases, quarantine and expiry end by the workers' clocks, and nobody tells: look again.
            await asyncio.sleep(LOOK_AGAIN_S)

    async def left_over(self) -> dict[str, dict[str, float]]:
        """What is not at rest, by who holds it."""
        running = [worker for worker in self.workers if worker.is_running]
        found = {worker.id: (await worker.figures()).not_at_rest() for worker in running}
        found["router"] = (await self.figures()).router_not_at_rest()
        if self.service.dispatcher.num_live:
            found["router"]["live answers"] = self.service.dispatcher.num_live
        return {name: left for name, left in found.items() if left}

    async def figures(self) -> Figures:
        """The router's /metrics: its own and its workers'."""
        response = await self.client.get("/metrics")
        assert response.status_code == 200, response.text
        return Figures.parse(response.text)

    def _wake(self) -> None:
        for event in self._waiters:
            event.set()


@dataclass(frozen=True)
class Proxies:
    """What stands before one worker."""

    for_router: Proxy
    for_peers: Proxy

    @classmethod
    async def before(
        cls, worker: WorkerProcess, stack: contextlib.AsyncExitStack, proxy: Callable[[str], Proxy]
    ) -> Proxies:
        proxies = cls(proxy(worker.address), proxy(worker.address))
        await proxies.for_router.start()
        await proxies.for_peers.start()
        stack.push_async_callback(proxies.close)
        return proxies

    async def close(self) -> None:
        """Idempotent."""
        await self.for_router.close()
        await self.for_peers.close()


class _Server(uvicorn.Server):
    """Leaves the test's signal handlers alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


class _Errors(logging.Handler):
    """Keeps what is logged as an error, also by asyncio about exceptions that nobody took."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        # gRPC's poller knows every loop of the process, those of earlier tests too, and only one finds the byte that woke
        # them (github.com/grpc/grpc/issues/25364).
        if "PollerCompletionQueue" in record.getMessage() and record.exc_info and record.exc_info[0] is BlockingIOError:
            return
        if record.name.startswith(NOT_OURS):
            return
        self.lines.append(f"router: {record.name}: {record.getMessage()}")


@contextlib.contextmanager
def _errors_here() -> Iterator[list[str]]:
    handler = _Errors()
    logging.getLogger().addHandler(handler)
    try:
        yield handler.lines
    finally:
        logging.getLogger().removeHandler(handler)


def _errors_in(log: Path) -> list[str]:
    marks = (" ERROR ", " CRITICAL ", "Traceback")
    lines = log.read_text().splitlines()
    return [line for line in lines if any(mark in line for mark in marks) and f" ERROR {NOT_OURS}" not in line]
