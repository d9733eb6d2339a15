"""RequestMachine: one answer's life at its router, pure: events in, actions out; no I/O, no clock.

    WAIT ──plan──▶ RUN ──first output of R, Committed──▶ STREAM ──▶ DONE
                    │ S lost or gave up: ask R (Fence)──▶ JUDGE ──Committed──▶ STREAM
                    └─────────── RETRY ◀── lost, Fenced ────┘      (RETRY is passed through: it ends in WAIT or DONE)

An answer whose worker was lost before it had shown that it survives this answer's steps is a suspect: its next attempt is solo.

R is the only judge of whether an attempt is committed. Emitted is what has position = next; later outputs are held,
earlier ones dropped. docs/protocol.md has the table that this file is; tests/router/test_request_machine.py checks it, row
by row.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from rtp_llm.errors import RtpLlmError, SuspectError, WorkerLostError
from rtp_llm.request import FinishReason, TokenOutput
from rtp_llm.wire.key import RequestKey, WorkerKey

RELEASES_BEFORE_ALONE = 2


class State(enum.Enum):
    WAIT = "wait"
    RUN = "run"
    STREAM = "stream"
    JUDGE = "judge"
    DONE = "done"


class AttachRole(enum.IntEnum):
    """What a worker is for an attempt; values are the wire's."""

    SENDER = 1
    RECEIVER = 2
    ALONE = 3


# --- Events. `key` is the attempt that the worker spoke of, `worker` the one that spoke.


@dataclass(frozen=True, slots=True)
class Planned:
    """Placed: `sender` prefills for `receiver`, or (receiver None) runs it alone."""

    sender: WorkerKey
    receiver: WorkerKey | None = None


@dataclass(frozen=True, slots=True)
class Output:
    key: RequestKey
    worker: WorkerKey
    output: TokenOutput


@dataclass(frozen=True, slots=True)
class Busy:
    key: RequestKey
    worker: WorkerKey


@dataclass(frozen=True, slots=True)
class Released:
    key: RequestKey
    worker: WorkerKey


@dataclass(frozen=True, slots=True)
class Fenced:
    key: RequestKey
    worker: WorkerKey
    preempted: bool = False  # by an administrator: it counts as no loss


@dataclass(frozen=True, slots=True)
class Committed:
    key: RequestKey
    worker: WorkerKey
    times: tuple[float, float] | None = None  # seconds of its KV on the wire and verified, where R says them


@dataclass(frozen=True, slots=True)
class Started:
    """The first step of this solo attempt comes next."""

    key: RequestKey
    worker: WorkerKey


@dataclass(frozen=True, slots=True)
class Failed:
    key: RequestKey
    worker: WorkerKey
    error: RtpLlmError


@dataclass(frozen=True, slots=True)
class Lost:
    """The worker (this epoch of it) is lost."""

    worker: WorkerKey


@dataclass(frozen=True, slots=True)
class Resumed:
    """The session came back with the same epoch, and Attach (with `attach_entry`) was sent on it."""

    worker: WorkerKey


@dataclass(frozen=True, slots=True)
class Ended:
    """The router ends it: client left or stop string (error None), or a deadline (its error)."""

    error: RtpLlmError | None = None


WorkerSaid: TypeAlias = Output | Busy | Released | Fenced | Committed | Started | Failed
Event: TypeAlias = Planned | WorkerSaid | Lost | Resumed | Ended

# --- Actions.


@dataclass(frozen=True, slots=True)
class Submit:
    worker: WorkerKey
    key: RequestKey
    output: Sequence[int]  # tokens so far; p0 = their number
    receiver: WorkerKey | None
    solo: bool = False  # in steps of its own


@dataclass(frozen=True, slots=True)
class Cancel:
    worker: WorkerKey
    key: RequestKey


@dataclass(frozen=True, slots=True)
class Fence:
    worker: WorkerKey
    key: RequestKey


@dataclass(frozen=True, slots=True)
class Place:
    """Plan this answer: the machine waits for Planned (or Ended)."""

    cause: str  # "first", "busy", "released", "fenced", "lost", "preempted"


@dataclass(frozen=True, slots=True)
class Emit:
    output: TokenOutput


@dataclass(frozen=True, slots=True)
class Finish:
    """The answer is whole, or its client is gone."""


@dataclass(frozen=True, slots=True)
class Fail:
    error: RtpLlmError


Action: TypeAlias = Submit | Cancel | Fence | Place | Emit | Finish | Fail


@dataclass(frozen=True, slots=True)
class AttachEntry:
    key: RequestKey
    next_position: int
    role: AttachRole


@dataclass
class RequestMachine:
    """One answer. `key` is its current attempt; `tokens` are emitted (or were given: a resume)."""

    key: RequestKey
    max_losses: int = 3
    tokens: list[int] = field(default_factory=list)
    state: State = State.WAIT
    sender: WorkerKey | None = None  # S, or W when there is no receiver
    receiver: WorkerKey | None = None
    losses: int = 0
    releases: int = 0
    prefer: tuple[WorkerKey, ...] = ()  # whose cache holds the prompt
    is_suspect: bool = False
    _started: bool = False  # as the live attempt, which is solo
    _survived: set[WorkerKey] = field(default_factory=set)  # have shown a token after the steps that are suspected
    _first: int = 0  # position of the live attempt's first token: p0
    _held: dict[int, TokenOutput] = field(default_factory=dict)
    _judges_a_loss: bool = False

    @property
    def must_run_alone(self) -> bool:
        return self.is_suspect or self.releases >= RELEASES_BEFORE_ALONE

    def workers(self) -> list[WorkerKey]:
        """All that know the current attempt."""
        return [worker for worker in (self.sender, self.receiver) if worker is not None]

    def needed(self) -> list[WorkerKey]:
        """Those without which the current attempt doesn't go on: once R has committed, R alone."""
        if self.state is State.STREAM and self.receiver is not None:
            return [self.receiver]
        return self.workers()

    def attach_entry(self, worker: WorkerKey) -> AttachEntry | None:
        """What an Attach to `worker` lists of this answer; None if the live attempt doesn't name it."""
        if self.state is State.DONE or worker not in self.workers():
            return None
        if worker == self.receiver:
            role = AttachRole.RECEIVER
        else:
            role = AttachRole.SENDER if self.receiver is not None else AttachRole.ALONE
        return AttachEntry(self.key, len(self.tokens), role)

    def start(self) -> list[Action]:
        return [Place("first")]

    def handle(self, event: Event) -> list[Action]:
        """What `event` makes necessary, in order."""
        if isinstance(event, Ended):
            return self._end(event.error)
        if isinstance(event, Planned):
            return self._planned(event)
        if isinstance(event, Lost):
            return self._lost(event.worker)
        if isinstance(event, Resumed):
            return self._resumed(event.worker)
        if event.key != self.key or self.state is State.DONE:
            return _answer_stale(event)
        if isinstance(event, Output):
            return self._output(event)
        if event.worker not in self.workers():  # one that this attempt doesn't count on (any more) has no say in it
            return []
        if isinstance(event, Failed):
            return [*self._cancel_all(), *self._done(Fail(event.error))]
        if isinstance(event, Busy):
            return self._place("busy") if self.state is State.RUN else []
        if isinstance(event, Committed):
            return self._committed(event.worker)
        if isinstance(event, Started):
            self._started = True
            return []
        if isinstance(event, Released):
            return self._sender_gave_up(event.worker, "released")
        return self._fenced(event.worker, event.preempted)

    # --- One method a row of the table.

    def _planned(self, event: Planned) -> list[Action]:
        if self.state is not State.WAIT:
            return []
        self.sender, self.receiver = event.sender, event.receiver
        self.state = State.RUN
        self._first, self._started = len(self.tokens), False
        self._survived.clear()
        return [Submit(event.sender, self.key, tuple(self.tokens), event.receiver, solo=self.is_suspect)]

    def _output(self, event: Output) -> list[Action]:
        if event.worker == self.receiver:
            self.state = State.STREAM
        position = event.output.position
        if position > self._first or (event.worker == self.sender and self.receiver is not None):
            self._survived.add(event.worker)
            self.is_suspect = False
        if position < len(self.tokens):
            return []
        self._held[position] = event.output
        actions: list[Action] = []
        while (output := self._held.pop(len(self.tokens), None)) is not None:
            if (error := output.error) is not None:  # another worker would fare no better
                return [*actions, *self._cancel_all(), *self._done(Fail(error))]
            self.tokens.append(output.token)
            actions.append(Emit(output))
            if output.finish_reason is not FinishReason.NONE:
                return [*actions, *self._done(Finish())]
        return actions

    def _committed(self, worker: WorkerKey) -> list[Action]:
        if worker == self.receiver:
            self.state = State.STREAM
        return []

    def _sender_gave_up(self, worker: WorkerKey, cause: str) -> list[Action]:
        """Released, Fenced or preempted at S: R decides, if there is one."""
        if self.state is not State.RUN or worker != self.sender:
            return []
        loss = cause == "fenced"  # unknown after an Attach, or given up by its engine
        if cause == "released":
            self.releases += 1
        if self.receiver is not None:
            return self._judge(self.receiver, began_by_loss=loss)
        return self._retry("lost" if loss else cause, loss=loss)

    def _fenced(self, worker: WorkerKey, preempted: bool) -> list[Action]:
        if worker == self.receiver:
            if self.state is State.JUDGE:
                return self._retry("fenced", loss=self._judges_a_loss)
            if self.state is State.STREAM:
                return self._retry("preempted" if preempted else "lost", loss=not preempted)
            return []
        return self._sender_gave_up(worker, "preempted" if preempted else "fenced")

    def _lost(self, worker: WorkerKey) -> list[Action]:
        self.prefer = tuple(each for each in self.prefer if each != worker)
        if self.state in (State.WAIT, State.DONE) or worker not in self.workers():
            return []
        if worker not in self._survived:
            if self._started:
                return self._done(Fail(self._is_to_blame()))
            self.is_suspect = True
        if worker == self.receiver or self.receiver is None:
            return self._retry("lost", loss=True, lost=worker)
        if self.state is State.RUN:
            return self._judge(self.receiver, began_by_loss=True, lost=worker)
        self.sender = None  # R's answer decides
        return []

    def _resumed(self, worker: WorkerKey) -> list[Action]:
        if self.state is State.DONE or worker not in self.workers():
            return []
        if self.state is State.JUDGE and worker == self.receiver:
            return [Fence(worker, self.key)]
        return []

    def _end(self, error: RtpLlmError | None) -> list[Action]:
        if self.state is State.DONE:
            return []
        return [*self._cancel_all(), *self._done(Fail(error) if error is not None else Finish())]

    def _is_to_blame(self) -> SuspectError:
        return SuspectError(
            f"{self.losses + 1} workers were lost while they ran the first steps of this request, the last one while it ran "
            "nothing else: it is not tried again"
        )

    # --- Transitions that several rows share.

    def _judge(self, receiver: WorkerKey, *, began_by_loss: bool, lost: WorkerKey | None = None) -> list[Action]:
        self.state = State.JUDGE
        self._judges_a_loss = began_by_loss
        if lost is not None:
            self.sender = None
        return [Fence(receiver, self.key)]

    def _retry(self, cause: str, *, loss: bool, lost: WorkerKey | None = None) -> list[Action]:
        if lost is not None:
            self.sender = self.sender if self.sender != lost else None
            self.receiver = self.receiver if self.receiver != lost else None
        self.losses += loss
        cancels = self._cancel_all()
        if loss and self.losses >= self.max_losses:
            error = WorkerLostError(
                f"{self.losses} workers were lost under this request, the limit is {self.max_losses}"
            )
            return [*cancels, *self._done(Fail(error))]
        return [*cancels, *self._place(cause)]

    def _place(self, cause: str) -> list[Action]:
        if self.sender is not None and cause != "busy":
            self.prefer = (self.sender,)
        self.key = self.key._replace(attempt=self.key.attempt + 1)
        self.state = State.WAIT
        self.sender = self.receiver = None
        self._held.clear()
        self._judges_a_loss = False
        return [Place(cause)]

    def _cancel_all(self) -> list[Action]:
        return [Cancel(worker, self.key) for worker in self.workers()] if self.state is not State.WAIT else []

    def _done(self, last: Finish | Fail) -> list[Action]:
        self.state = State.DONE
        self._held.clear()
        return [last]


def _answer_stale(event: WorkerSaid) -> list[Action]:
    """A stale key speaks: what lives there is cancelled. The other notices say that nothing does."""
    return [Cancel(event.worker, event.key)] if isinstance(event, Output | Committed | Released) else []
