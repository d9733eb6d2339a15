"""Usage: the tokens of one response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Usage:
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    timings: list[dict[str, float]] | None = None  # of each answer, where they were asked for

    def body(self) -> dict[str, Any]:
        timings = {} if self.timings is None else {"timings": self.timings}
        thought = self.reasoning_tokens
        reasoning = {"completion_tokens_details": {"reasoning_tokens": thought}} if thought else {}
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            **reasoning,
            **timings,
        }
