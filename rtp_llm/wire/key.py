"""Who is who on the wire."""

from __future__ import annotations

from typing import NamedTuple


class RequestKey(NamedTuple):
    """k: one placement (attempt) of one answer (request, choice) by its router."""

    router_epoch: int
    request: int
    choice: int
    attempt: int

    def __str__(self) -> str:
        return f"{self.router_epoch:016x}/{self.request}.{self.choice}#{self.attempt}"


class WorkerKey(NamedTuple):
    """A worker process: `id` names the place, `epoch` (random, drawn at process start) this incarnation; 0: not known."""

    id: str
    epoch: int

    def __str__(self) -> str:
        return f"{self.id}@{self.epoch:016x}"
