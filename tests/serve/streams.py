"""Streamed completions side by side, token for token."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class Stream:
    """One answer as it comes: texts and logprobs by token, and how it ended."""

    body: dict[str, Any]
    tokens: list[tuple[str, float]] = field(default_factory=list)
    finish: str | None = None
    error: str | None = None


class Streams:
    """`start()` posts all bodies to /v1/completions; `reached(n)` is when each has n tokens, `finished()` when all are over."""

    def __init__(self, url: str, bodies: Sequence[dict[str, Any]]) -> None:
        self.streams = [Stream({**body, "stream": True, "logprobs": 0}) for body in bodies]
        self._url = url
        self._changed = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Streams:
        self._client = httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None))
        self._tasks = [asyncio.create_task(self._run(stream)) for stream in self.streams]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()

    async def reached(self, num_tokens: int, num_streams: int | None = None) -> None:
        wanted = len(self.streams) if num_streams is None else num_streams

        def enough() -> bool:
            return sum(len(s.tokens) >= num_tokens for s in self.streams) >= wanted

        async with self._changed:
            await self._changed.wait_for(lambda: enough() or any(s.error for s in self.streams))
        assert enough(), [s.error for s in self.streams]

    async def finished(self) -> list[list[tuple[str, float]]]:
        """Each stream's tokens; all must have ended well."""
        await asyncio.gather(*self._tasks)
        assert [(s.error, s.finish) for s in self.streams] == [(None, "length")] * len(self.streams)
        return [s.tokens for s in self.streams]

    async def _run(self, stream: Stream) -> None:
        async with self._client.stream("POST", f"{self._url}/v1/completions", json=stream.body) as response:
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    async with self._changed:
                        self._take(stream, json.loads(line[len("data: ") :]))
                        self._changed.notify_all()

    @staticmethod
    def _take(stream: Stream, event: dict[str, Any]) -> None:
        if "error" in event:
            stream.error = event["error"]["message"]
            return
        [choice] = event["choices"]
        logprobs = choice["logprobs"]
        stream.tokens += zip(logprobs["tokens"], logprobs["token_logprobs"], strict=True) if logprobs else []
        stream.finish = choice["finish_reason"] or stream.finish


async def answers(url: str, bodies: Sequence[dict[str, Any]]) -> list[list[tuple[str, float]]]:
    """All of them, undisturbed."""
    async with Streams(url, bodies) as streams:
        return await streams.finished()
