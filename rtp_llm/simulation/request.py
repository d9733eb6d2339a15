"""SimulatedRequest: what a client asks, and when it got what."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True, eq=False)
class SimulatedRequest:
    number: int
    arrival: float
    prompt_tokens: int
    output_tokens: int
    block_hashes: tuple[bytes, ...] = ()  # of the prompt's full blocks
    placed: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    refused: bool = False
    # In its engine.
    computed: int = 0  # prompt rows, those that were cached included
    cached: int = 0  # tokens that the worker that computed it had
    received_cached: int = 0  # that its receiver had
    ends_at_step: int = 0  # of its worker's decode steps

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens

    @property
    def is_finished(self) -> bool:
        return self.last_token is not None

    @property
    def ttft(self) -> float:
        """REQUIRES: it has its first token."""
        assert self.first_token is not None
        return self.first_token - self.arrival

    @property
    def itl(self) -> float:
        """Mean seconds between two of its tokens. REQUIRES: it is finished."""
        assert self.first_token is not None and self.last_token is not None
        return (self.last_token - self.first_token) / max(self.output_tokens - 1, 1)
