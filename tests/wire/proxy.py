"""A TCP proxy that tests break."""

from __future__ import annotations

import asyncio
import contextlib


class Proxy:
    """Forwards TCP; can break its connections, stall them, and refuse new ones."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._pairs: list[asyncio.StreamWriter] = []
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.address = ""
        self.num_forwarded = 0  # connections so far, to the target and back

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self.target.split(":")
        try:
            inner_reader, inner_writer = await asyncio.open_connection(host, int(port))
        except ConnectionRefusedError:
            writer.transport.abort()
            return
        self._pairs += [writer, inner_writer]
        self.num_forwarded += 1
        for source, sink in ((reader, inner_writer), (inner_reader, writer)):
            task = asyncio.ensure_future(self._pump(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(1 << 16):
                await self._flowing.wait()
                sink.write(data)
                await sink.drain()
        sink.close()

    def break_connections(self) -> None:
        for writer in self._pairs:
            writer.transport.abort()
        self._pairs.clear()

    def stall(self) -> None:
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    async def close(self) -> None:
        self._server.close()
        self.break_connections()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
