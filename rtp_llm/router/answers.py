"""Answers: all choices of one response, merged as they grow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, fields
from typing import Protocol, TypeAlias

from rtp_llm.model.answer_text import Delta
from rtp_llm.model.parts.answer_parts import joined_calls
from rtp_llm.router.raw_shown import RawShown
from rtp_llm.router.response_store import AskedResponse, Memory
from rtp_llm.router.usage import Usage

# (choice index, what it said), where None is its end; None alone is a ping.
Queue: TypeAlias = "asyncio.Queue[tuple[int, Delta | BaseException | None] | None]"


class Prompt(Protocol):
    """One tokenized prompt with its sampling parameters: what a completion backend answers."""

    @property
    def number(self) -> int:
        """Of this router's requests: its answers' accounts have it."""
        ...

    @property
    def num_tokens(self) -> int: ...

    @property
    def num_choices(self) -> int: ...

    @property
    def logprobs(self) -> bool: ...

    @property
    def token_ids(self) -> Sequence[int]: ...

    def answer(self, request_id: str, choice: int) -> AsyncGenerator[Delta, None]: ...


@dataclass(frozen=True, kw_only=True)
class Shown:
    """How a request wants to be answered."""

    stream: bool
    include_usage: bool
    model: str = ""  # as the request calls it; empty: it doesn't
    continuous_usage: bool = False  # each chunk has the usage so far
    return_timings: bool = False
    return_token_ids: bool = False
    response: AskedResponse | None = None  # of /v1/responses
    raw: RawShown | None = None  # of RTP-LLM's raw requests


@dataclass(frozen=True, kw_only=True)
class Question(Shown):
    """One HTTP request."""

    prompts: Sequence[Prompt]
    memory: Memory | None = None  # where a response is kept

    @classmethod
    def of(cls, prompts: Sequence[Prompt], shown: Shown, memory: Memory | None = None) -> Question:
        """To be answered as `shown` says."""
        return cls(prompts=prompts, memory=memory, **{each.name: getattr(shown, each.name) for each in fields(Shown)})


class Answers:
    """All choices of a response; choice index = prompt index * n + choice of that prompt.

    Prompts are answered side by side. The first choice of each goes ahead, so that the others hit the prompt's blocks.
    """

    def __init__(self, request_id: str, prompts: Sequence[Prompt]) -> None:
        self.prompts = prompts
        self.indices = [(p, c) for p, prompt in enumerate(prompts) for c in range(prompt.num_choices)]
        self.usage = Usage(prompt_tokens=sum(prompt.num_tokens for prompt in prompts))
        self.logprobs = prompts[0].logprobs
        self._request_id = request_id
        self._computed = [asyncio.Event() for _ in prompts]  # by prompt: its first choice has a token

    async def collect(self) -> list[list[Delta]]:
        """What each answer grew by."""
        parts: list[list[Delta]] = [[] for _ in self.indices]
        async with aclosing(self.stream()) as deltas:
            async for said in deltas:
                if said is not None:
                    parts[said[0]].append(said[1])
        return parts

    def prompt_token_ids(self, index: int) -> list[int]:
        """Of the prompt that a choice answers."""
        return list(self.prompts[self.indices[index][0]].token_ids)

    async def stream(self, ping_s: float | None = None) -> AsyncGenerator[tuple[int, Delta] | None, None]:
        """(choice index, delta) as they come, None after each silence of `ping_s`. The first error ends all choices."""
        queue: Queue = asyncio.Queue(maxsize=64)
        tasks = [asyncio.create_task(self._run(i, p, c, queue)) for i, (p, c) in enumerate(self.indices)]
        pings = _Pings(queue, ping_s)
        try:
            running = len(tasks)
            while running:
                said = await queue.get()
                pings.put_off()
                if said is None:
                    yield None
                    continue
                index, item = said
                if item is None:
                    running -= 1
                elif isinstance(item, BaseException):
                    raise item
                else:
                    self._count(index, item)
                    yield index, item
        finally:
            pings.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, index: int, prompt: int, choice: int, queue: Queue) -> None:
        try:
            if choice:
                await self._computed[prompt].wait()
            async with aclosing(self.prompts[prompt].answer(f"{self._request_id}-{prompt}", choice)) as answer:
                async for delta in answer:
                    self._computed[prompt].set()
                    await queue.put((index, delta))
        except Exception as error:
            await queue.put((index, error))
        else:
            await queue.put((index, None))

    def _count(self, index: int, delta: Delta) -> None:
        self.usage.completion_tokens += delta.num_tokens
        self.usage.reasoning_tokens += delta.num_reasoning_tokens
        prompt, choice = self.indices[index]
        if choice == 0:  # usage counts a prompt once
            self.usage.cached_tokens += min(delta.num_cached_tokens, self.prompts[prompt].num_tokens)


class _Pings:
    """Puts None into a queue that nobody has put anything into for `ping_s`. One timer looks so often: a token costs it nothing
    but a look at the clock."""

    def __init__(self, queue: Queue, ping_s: float | None) -> None:
        self._queue = queue
        self._ping_s = ping_s
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.put_off()
        self._wait()

    def put_off(self) -> None:
        """Something was said."""
        self._last = self._loop.time()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self) -> None:
        if self._ping_s is not None:
            self._timer = self._loop.call_at(self._last + self._ping_s, self._due)

    def _due(self) -> None:
        assert self._ping_s is not None
        if self._loop.time() - self._last >= self._ping_s:
            if self._queue.empty():
                self._queue.put_nowait(None)
            self.put_off()
        self._wait()


def joined(parts: Sequence[Delta]) -> Delta:
    """An answer as one Delta, from what it grew by."""
    return Delta(
        text="".join(part.text for part in parts),
        reasoning="".join(part.reasoning for part in parts),
        token_ids=[token for part in parts for token in part.token_ids],
        logprobs=[logprob for part in parts for logprob in part.logprobs],
        tool_calls=joined_calls([call for part in parts for call in part.tool_calls]),
        finish_reason=parts[-1].finish_reason if parts else None,
        stop_reason=parts[-1].stop_reason if parts else None,
    )
