"""AnswerStream: one streamed completion as a client sees it, token by token."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class AnswerStream:
    """Reads by itself; `changed()` is called after each event. `tokens` and `logprobs` need "logprobs" in the body."""

    body: dict[str, Any]
    changed: Callable[[], None] = lambda: None
    text: str = ""
    tokens: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    error: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    ended: bool = False
    _task: asyncio.Task[None] | None = None

    def start(self, client: httpx.AsyncClient) -> AnswerStream:
        self._task = asyncio.ensure_future(self._read(client))
        return self

    @property
    def bits(self) -> list[tuple[str, str]]:
        """Tokens with the bits of their logprobs."""
        return [(token, value.hex()) for token, value in zip(self.tokens, self.logprobs, strict=True)]

    async def finished(self) -> AnswerStream:
        assert self._task is not None
        await self._task
        return self

    async def leave(self) -> None:
        """Close the connection, as a client that goes away does."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self, client: httpx.AsyncClient) -> None:
        try:
            async with client.stream("POST", "/v1/completions", json={**self.body, "stream": True}) as response:
                if response.status_code != 200:
                    await response.aread()
                    self.error = response.json()["error"]
                    return
                async for event in events(response):
                    self._take(event)
                    self.changed()
        finally:
            self.ended = True
            self.changed()

    def _take(self, event: dict[str, Any]) -> None:
        if "error" in event:
            self.error = event["error"]
            return
        self.usage = event.get("usage") or self.usage
        for choice in event["choices"]:
            self.text += choice["text"]
            if choice["logprobs"]:
                self.tokens += choice["logprobs"]["tokens"]
                self.logprobs += choice["logprobs"]["token_logprobs"]
            assert self.finish_reason is None, f"{choice} after the end"
            self.finish_reason = choice["finish_reason"]


async def events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Server-sent events up to [DONE]; a stream that ends without it is an error."""
    async for line in response.aiter_lines():
        if line == "data: [DONE]":
            return
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))
    raise AssertionError("the stream ended without [DONE]")
