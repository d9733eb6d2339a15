"""The client's side of one request and of many: what is sent when, and when what came back. Times are time.perf_counter()."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from rtp_llm.errors import InvalidRequestError
from rtp_llm.http_client import key_header, words_of
from rtp_llm.load.workload import Arrival

CONNECT_TIMEOUT_S = 30


@dataclass
class Outcome:
    """What became of an arrival. Times in seconds after the start of all."""

    prompt_tokens: int
    wanted_tokens: int
    due: float
    sent: float = 0.0
    said: list[float] = field(default_factory=list)  # when events with something in them came
    ended: float = 0.0
    tokens: int = 0  # as the server's usage counts them; without it, events
    cached_tokens: int = 0
    error: str = ""

    @property
    def ok(self) -> bool:
        return not self.error

    @property
    def first_token_s(self) -> float:
        """From when the request was due: a client or server that is behind counts as the server's."""
        return self.said[0] - self.due

    @property
    def token_s(self) -> float | None:
        """Mean time of a token after the first; None: there is none."""
        return (self.said[-1] - self.said[0]) / (self.tokens - 1) if self.tokens > 1 else None

    def gaps(self) -> list[float]:
        """Between events: a token each, but for those that make a character only together."""
        return [after - before for before, after in zip(self.said, self.said[1:], strict=False)]


async def run(
    url: str, model: str, arrivals: Iterable[Arrival], concurrency: int | None, progress: Callable[[Outcome], None]
) -> list[Outcome]:
    """Sends each arrival when it is due; with `concurrency`, at most so many at once: those beyond it are due when one ends.

    Raises:
        InvalidRequestError: `url` isn't one of a server.
    """
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0)
    places = asyncio.Semaphore(concurrency) if concurrency is not None else None
    async with aiohttp.ClientSession(
        timeout=timeout, connector=connector, trust_env=False, headers=key_header()
    ) as session:
        begin = time.perf_counter()

        async def one(arrival: Arrival) -> Outcome:
            outcome = Outcome(len(arrival.prompt), arrival.output_tokens, arrival.due_s)
            try:
                await _ask(session, url, model, arrival, outcome, begin)
            except aiohttp.InvalidURL as error:
                raise InvalidRequestError(f"url {url!r}: {error}", param="url", value=url) from error
            except (aiohttp.ClientError, OSError, ValueError, asyncio.TimeoutError) as error:
                outcome.error = str(error) or type(error).__name__
            finally:
                if places is not None:
                    places.release()
            outcome.ended = time.perf_counter() - begin
            progress(outcome)
            return outcome

        tasks: list[asyncio.Task[Outcome]] = []
        try:
            for arrival in arrivals:
                await asyncio.sleep(max(begin + arrival.due_s - time.perf_counter(), 0))
                if places is not None:
                    await places.acquire()
                    late = time.perf_counter() - begin
                    arrival = Arrival(max(arrival.due_s, late), arrival.prompt, arrival.output_tokens)
                tasks.append(asyncio.create_task(one(arrival)))
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _ask(
    session: aiohttp.ClientSession, url: str, model: str, arrival: Arrival, outcome: Outcome, begin: float
) -> None:
    body = {
        "model": model,
        "prompt": list(arrival.prompt),
        "max_tokens": arrival.output_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    outcome.sent = time.perf_counter() - begin
    async with session.post(f"{url}/v1/completions", json=body) as response:
        if response.status != 200:
            outcome.error = f"{response.status}: {words_of(await response.read())}"
            return
        is_whole = False
        async for line in response.content:
            if line == b"data: [DONE]\n":
                is_whole = True
            elif line.startswith(b"data: "):
                _take(json.loads(line[6:]), time.perf_counter() - begin, outcome)
        if not is_whole and not outcome.error:
            outcome.error = "the stream broke off"
        elif not outcome.said and not outcome.error:
            outcome.error = "no token came"


def _take(event: dict[str, Any], at: float, outcome: Outcome) -> None:
    if "error" in event:
        outcome.error = str(event["error"].get("message", event["error"]))
        return
    if any(choice.get("text") or choice.get("finish_reason") for choice in event.get("choices", ())):
        outcome.said.append(at)
        outcome.tokens += 1
    if usage := event.get("usage"):
        outcome.tokens = usage["completion_tokens"]
        outcome.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
