"""WorkerLedger: what a worker has to do, by its last Load and by what this router has placed there and not heard back."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

from rtp_llm.router.placement.policy import WorkerView


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerLoad:
    """A worker's last Load, as placement reads it."""

    queued_tokens: int = 0
    max_queued_tokens: int = 0  # 0: no Load has come
    running: int = 0
    waiting: int = 0
    free_blocks: int = 0
    total_blocks: int = 0
    block_tokens: int = 0
    slots: int = 0
    slots_of_others: int = 0  # taken or awaited by what other routers have placed

    def when_busy(self, queued_tokens: int, limit: int) -> WorkerLoad:
        """After this answer: nothing is placed there until a Load says that its queue has shrunk."""
        return replace(self, queued_tokens=max(queued_tokens, limit), max_queued_tokens=limit)


class WorkerLedger:
    """By key of an attempt. Each method says whether something counts otherwise than before."""

    def __init__(self) -> None:
        self.load = WorkerLoad()
        # What this router has submitted and neither a word about it nor a later Load has shown. A Load that crosses a Submit
        # on the wire clears it too early; then the worker's own limit answers Busy.
        self._submitted: dict[Hashable, int] = {}  # prompt tokens
        self.submitted_tokens = 0
        # Handovers to it of which it hasn't spoken. No Load shows them: R hears of one when S schedules the prompt.
        self._received: set[Hashable] = set()
        # What this router has placed to run here: each has, or will want, a slot. Prompt tokens.
        self._runs: dict[Hashable, int] = {}
        self._run_tokens = 0

    @property
    def queued_tokens(self) -> int:
        return self.load.queued_tokens + self.submitted_tokens

    @property
    def running(self) -> int:
        return self.load.running + self.load.waiting + len(self._submitted) + len(self._received)

    @property
    def sequences(self) -> int:
        """That run there, or will: this router's own to the end of each, and what the last Load said of others."""
        return self.load.slots_of_others + len(self._runs)

    @property
    def context_tokens(self) -> int:
        """KV that these read in a decode step, or will: of others as much a sequence as the KV that is used suggests."""
        others, load = self.load.slots_of_others, self.load
        used = (load.total_blocks - load.free_blocks) * load.block_tokens
        return self._run_tokens + (used * others // self.sequences if others else 0)

    @property
    def free_slots(self) -> int:
        return max(self.load.slots - self.sequences, 0)

    def view(self, **worker: Any) -> WorkerView:
        """Of a worker with this to do; `worker`: what else a WorkerView has."""
        return WorkerView(
            queued_tokens=self.queued_tokens,
            max_queued_tokens=self.load.max_queued_tokens,
            running=self.running,
            sequences=self.sequences,
            context_tokens=self.context_tokens,
            free_blocks=self.load.free_blocks,
            block_tokens=self.load.block_tokens,
            free_slots=self.free_slots,
            **worker,
        )

    def loaded(self, load: WorkerLoad) -> None:
        self.load = load
        self._submitted.clear()
        self.submitted_tokens = 0

    def submitted(self, key: Hashable, prompt_tokens: int, *, runs: bool) -> None:
        """`runs`: alone, to its end."""
        self.submitted_tokens += prompt_tokens - self._submitted.get(key, 0)
        self._submitted[key] = prompt_tokens
        if runs:
            self._run(key, prompt_tokens)

    def receives(self, key: Hashable, prompt_tokens: int) -> None:
        self._received.add(key)
        self._run(key, prompt_tokens)

    def _run(self, key: Hashable, prompt_tokens: int) -> None:
        self._run_tokens += prompt_tokens - self._runs.get(key, 0)
        self._runs[key] = prompt_tokens

    def forget(self, key: Hashable) -> bool:
        """The worker has spoken of `key`: its Load speaks for it now."""
        submitted, received = self._submitted.pop(key, None), key in self._received
        self._received.discard(key)
        self.submitted_tokens -= submitted or 0
        return submitted is not None or received

    def over(self, key: Hashable) -> bool:
        """The attempt is over: it ended, or was cancelled."""
        tokens = self._runs.pop(key, None)
        self._run_tokens -= tokens or 0
        return self.forget(key) or tokens is not None

    def clear(self) -> None:
        self._submitted.clear()
        self._received.clear()
        self._runs.clear()
        self.submitted_tokens = self._run_tokens = 0
