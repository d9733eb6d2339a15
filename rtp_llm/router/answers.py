"""Answers: all choices of one response, merged as they grow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from rtp_llm.router.responses import Delta, Shape, Usage


class Prompt(Protocol):
    """One tokenized prompt with its sampling parameters: what a completion backend answers."""

    @property
    def num_tokens(self) -> int: ...

    @property
    def num_choices(self) -> int: ...

    @property
    def logprobs(self) -> bool: ...

    def answer(self, request_id: str, choice: int) -> AsyncGenerator[Delta, None]: ...


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

    async def collect(self, shape: Shape) -> tuple[list[dict[str, Any]], Usage]:
        texts: list[list[Delta]] = [[] for _ in self.indices]
        async with aclosing(self.stream()) as deltas:
            async for index, delta in deltas:
                texts[index].append(delta)
        choices = [shape.whole_choice(i, _joined(parts), self.logprobs) for i, parts in enumerate(texts)]
        return choices, self.usage

    async def stream(self) -> AsyncGenerator[tuple[int, Delta], None]:
        """(choice index, delta) as they come. The first error ends all choices."""
        queue: asyncio.Queue[tuple[int, Delta | BaseException | None]] = asyncio.Queue(maxsize=64)
        tasks = [asyncio.create_task(self._run(i, p, c, queue)) for i, (p, c) in enumerate(self.indices)]
        try:
            running = len(tasks)
            while running:
                index, item = await queue.get()
                if item is None:
                    running -= 1
                elif isinstance(item, BaseException):
                    raise item
                else:
                    self._count(index, item)
                    yield index, item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, index: int, prompt: int, choice: int, queue: asyncio.Queue[Any]) -> None:
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
        prompt, choice = self.indices[index]
        if choice == 0:  # usage counts a prompt once
            self.usage.cached_tokens += min(delta.num_cached_tokens, self.prompts[prompt].num_tokens)


def _joined(parts: list[Delta]) -> Delta:
    return Delta(
        text="".join(part.text for part in parts),
        logprobs=[logprob for part in parts for logprob in part.logprobs],
        finish_reason=parts[-1].finish_reason if parts else None,
    )
