"""An answer as server-sent events, for as long as its client is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Result = TypeVar("Result")


class ClientWatch:
    """Hears of the client's leaving, from after its body to the answer's end: one task for all of it. Who makes it stops it, or
    the EventStream that it is handed to."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = asyncio.ensure_future(self._until_gone())

    async def during(self, work: Awaitable[Result]) -> Result:
        """Runs `work`, which ends early (cancelled) when the client leaves before.

        Raises:
            ClientDisconnect: it left; `work` has ended.
        """
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, self._gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientDisconnect
            return await task
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def stop(self) -> None:
        self._gone.cancel()

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


class EventStream(Response):
    """Sends `events` until they end or the client leaves; closes them, and stops `client`, either way."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], client: ClientWatch) -> None:
        self._events, self._client = events, client
        self.status_code, self.background = 200, None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._client.during(self._send_all(send))
        except ClientDisconnect:
            pass
        finally:
            self._client.stop()

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
