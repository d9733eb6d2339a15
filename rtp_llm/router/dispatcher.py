"""Dispatcher: runs every answer's RequestMachine against the fleet. One event loop; nothing here waits but `generate`.

It owns the table of live answers: an answer enters in `generate` and leaves when its machine is done, whoever ended it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Iterable

from rtp_llm.config import RouterSettings
from rtp_llm.errors import AbortedError, DeadlineError, OverloadedError, RtpLlmError, SuspectError, UnavailableError
from rtp_llm.metrics import RouterMetrics
from rtp_llm.pool_state import PauseMode
from rtp_llm.request import Request, TokenOutput
from rtp_llm.router import request_machine as machine
from rtp_llm.router.account import AnswerAccount, current_account
from rtp_llm.router.fair_queue import OUTPUT_COST, FairQueue
from rtp_llm.router.fleet import Fleet
from rtp_llm.router.placement import (
    FleetEvent,
    HandoverMeasured,
    Placement,
    PlacementQuery,
    Policy,
    Snapshot,
    StepMeasured,
)
from rtp_llm.router.prompt_hashes import PromptHashes
from rtp_llm.router.request_machine import RequestMachine
from rtp_llm.router.steps_seen import StepsSeen
from rtp_llm.router.suspects import EndedWorkers, RetryBudget, digest_of
from rtp_llm.router.terms import NO_TERMS, Terms
from rtp_llm.wire.convert import attach_message, cancel_message, fence_message, submit_message
from rtp_llm.wire.key import RequestKey, WorkerKey

log = logging.getLogger("rtp_llm.router")

LOSSES = ("lost", "fenced")  # causes of an attempt that the budget of retries counts


class Answer:
    """One live answer: its request, its machine, and what its reader hasn't taken yet."""

    def __init__(
        self,
        request: Request,
        terms: Terms,
        hashes: PromptHashes | None,
        state: RequestMachine,
        arrival: int,
        account: AnswerAccount,
    ) -> None:
        self.request = request
        self.terms = terms
        self.protocol = request.sampling.protocol  # version that says all that is asked for
        self.arrival = arrival  # counts answers: of equal turns the earlier comes first, retries too
        self.machine = state
        self.account = account
        self.is_charged = False  # its tenant, for its prompt
        self._hashes = hashes
        self.pending: list[TokenOutput] = []
        self.finished = False
        self.error: RtpLlmError | None = None
        self.changed = asyncio.Event()
        self.deadline: asyncio.TimerHandle | None = None
        self.first_deadline: asyncio.TimerHandle | None = None  # of the first token
        self.wait_until: float | None = None  # from the first wait since a worker took it; spans Busy
        self.wait_timer: asyncio.TimerHandle | None = None
        self.retry_timer: asyncio.TimerHandle | None = None  # until it may be tried again
        self.placed: tuple[RequestKey, list[WorkerKey]] | None = None  # the attempt under way, and where it counts
        self.tokens_sent: int | None = None  # of its placement

    @property
    def tenant(self) -> str:
        return self.terms.tenant

    @property
    def session(self) -> str:
        """Two tenants' are two."""
        return f"{self.tenant} {self.terms.session}" if self.terms.session else ""

    @property
    def priority(self) -> int:
        return self.request.priority

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.prompt) + len(self.machine.tokens)

    def block_hashes(self, model_digest: str) -> PromptHashes:
        """Of the prompt, tokens so far included."""
        if self._hashes is None or not self._hashes.are_of(self.prompt_tokens, model_digest):
            tokens = self.request.prompt
            if self.machine.tokens:
                tokens = [*tokens, *self.machine.tokens]
            self._hashes = PromptHashes(tokens, model_digest, self.request.cache_salt)
        return self._hashes

    @property
    def new_tokens(self) -> int:
        """Of the prompt, to be computed: a prompt's later choices find it in the cache."""
        return self.prompt_tokens if self.request.choice == 0 else 1

    @property
    def total_tokens(self) -> int:
        """Prompt and the whole answer at its longest."""
        return len(self.request.prompt) + (self.request.sampling.max_tokens or 0)

    @property
    def tokens_left(self) -> int:
        limit = self.request.sampling.max_tokens
        return (limit if limit is not None else 1 << 30) - len(self.machine.tokens)


class Dispatcher:
    """`fleet.listener` is this object. Answers are keyed by (request number, choice)."""

    def __init__(self, fleet: Fleet, policy: Policy, settings: RouterSettings, metrics: RouterMetrics) -> None:
        self._fleet = fleet
        self._policy = policy
        self._settings = settings
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._answers: dict[tuple[int, int], Answer] = {}
        self._waiting = FairQueue[Answer](settings.tenant_weights)  # all in State.WAIT
        self._arrivals = 0
        self._ended_workers = EndedWorkers(self._loop.time)
        self._retries = RetryBudget(settings.retry_rate, settings.retry_burst)
        self._draining: set[WorkerKey] = set()  # not acknowledged yet: live answers name them
        self._requests = 0
        self._random = random.Random()
        self.steps_seen: StepsSeen | None = None  # where pools are autoscaled
        fleet.listener = self

    def reconfigure(self, settings: RouterSettings) -> None:
        """For answers that come from now on, and for what is asked of the others again and again."""
        if (settings.retry_rate, settings.retry_burst) != (self._settings.retry_rate, self._settings.retry_burst):
            self._retries = RetryBudget(settings.retry_rate, settings.retry_burst)
        self._waiting.reweigh(settings.tenant_weights)
        self._settings = settings

    def next_request(self) -> int:
        """A request number: the n choices of one prompt share it."""
        self._requests += 1
        return self._requests

    @property
    def num_live(self) -> int:
        return len(self._answers)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def tokens_ahead(self, terms: Terms) -> int:
        """Prompt tokens that wait here and go before a request that comes now."""
        return round(self._waiting.tokens_ahead(terms.tenant, terms.priority))

    @property
    def tokens_waiting(self) -> int:
        """Prompt tokens that wait here."""
        return self._waiting.num_tokens

    async def generate(
        self,
        request: Request,
        number: int,
        account: AnswerAccount | None = None,
        terms: Terms = NO_TERMS,
        hashes: PromptHashes | None = None,
    ) -> AsyncGenerator[list[TokenOutput], None]:
        """Tokens as they come, in order, without gap or repeat; ends after the one with a finish reason. Closing the iterator
        early cancels the answer. `account` is told what becomes of it; `hashes` are the prompt's, where they are known.
        REQUIRES: request.sampling has a seed and max_tokens.

        Raises:
            OverloadedError: too many answers wait for a worker.
            SuspectError: workers were lost by this prompt's first steps, now or in the last minutes.
            UnavailableError: no worker took it in time.
            DeadlineError: the time is over that `terms` or the settings leave the answer, or its first token.
            RtpLlmError: a worker refused the request, or workers were lost under it too often.
        """
        answer = self._admit(request, number, account or current_account().answer(), terms, hashes)
        try:
            while True:
                await answer.changed.wait()
                answer.changed.clear()
                pending, answer.pending = answer.pending, []
                if pending:
                    yield pending
                if answer.finished and not answer.pending:
                    break
            if answer.error is not None:
                raise answer.error
        finally:
            self._run(answer, answer.machine.handle(machine.Ended()))

    # --- FleetListener

    def said(self, said: machine.WorkerSaid) -> None:
        worker = self._fleet.find(said.worker)
        if worker is not None:
            worker.forget(said.key)
        answer = self._answers.get((said.key.request, said.key.choice))
        if answer is None:
            if isinstance(said, machine.Output | machine.Released | machine.Committed):
                self._cancel(said.worker, said.key)
            return
        if isinstance(said, machine.Committed) and said.key == answer.machine.key:
            self._handed_over(answer, said.times)
        state = answer.machine.state
        self._run(answer, answer.machine.handle(said))
        if answer.machine.state is not state:  # its sender may be needed no more
            self._acknowledge_draining()

    def _handed_over(self, answer: Answer, times: tuple[float, float] | None) -> None:
        """Perhaps not for the first time: R repeats it after an Attach."""
        account = answer.account
        if account.handed_over is None:
            account.handed_over, account.arrival = time.monotonic(), times
            phases = account.of_handover()
            for phase, seconds in phases.items():
                self._metrics.phase_duration.labels(phase).observe(seconds)
            self._tell_policy(answer, phases["handover"])

    def _tell_policy(self, answer: Answer, handover_s: float) -> None:
        if answer.tokens_sent is None or len(answer.account.workers) > 1:  # the first token may be of another attempt
            return
        sender, receiver = answer.account.workers[0]
        measured = HandoverMeasured(sender, receiver, answer.tokens_sent, handover_s, self._loop.time())
        self._policy.observe([measured])

    def resumed(self, worker: WorkerKey) -> None:
        entries = [(a, entry) for a in self._answers.values() if (entry := a.machine.attach_entry(worker)) is not None]
        listed = [(entry.key, entry.next_position, entry.role.value) for _, entry in entries]
        self._fleet.send(worker, attach_message(listed))
        for answer, _ in entries:
            self._run(answer, answer.machine.handle(machine.Resumed(worker)))

    def lost(self, worker: WorkerKey) -> None:
        for answer in list(self._answers.values()):
            self._run(answer, answer.machine.handle(machine.Lost(worker)))

    def draining(self, worker: WorkerKey, pause: PauseMode | None) -> None:
        self._draining.add(worker)
        if pause is PauseMode.ABORT:
            aborted = AbortedError("the pool was paused: this answer ends here")
            for answer in list(self._answers.values()):
                if worker in answer.machine.needed():
                    self._end(answer, aborted)
        self._acknowledge_draining()

    def undrained(self, worker: WorkerKey) -> None:
        self._draining.discard(worker)

    def observe(self, event: FleetEvent) -> None:
        self._policy.observe([event])
        if self.steps_seen is not None and isinstance(event, StepMeasured):
            self.steps_seen.observe(self._fleet.snapshot[event.id].pool, event, self._loop.time())

    def ended_workers(self, digest: bytes) -> None:
        self._ended_workers.add(digest)

    def room_changed(self) -> None:
        if self._waiting:
            self._place_waiting()

    # --- Inside

    def _admit(
        self, request: Request, number: int, account: AnswerAccount, terms: Terms, hashes: PromptHashes | None
    ) -> Answer:
        if len(self._waiting) >= self._settings.max_waiting:
            raise OverloadedError(
                f"{len(self._waiting)} answers wait for a worker, the limit is {self._settings.max_waiting}"
            )
        self._ended_workers.check(request)
        key = RequestKey(self._fleet.router_epoch, number, request.choice, 0)
        state = RequestMachine(key, max_losses=self._settings.max_losses, tokens=list(request.output))
        self._arrivals += 1
        account.prompt_tokens, account.asked, account.key = len(request.prompt), time.monotonic(), str(key)
        answer = Answer(request, terms, hashes, state, self._arrivals, account)
        self._answers[number, request.choice] = answer
        self._metrics.requests_running.set(len(self._answers))
        if request.choice == 0:
            self._metrics.prompt_tokens.inc(len(request.prompt))
        self._set_deadlines(answer)
        self._run(answer, state.start())
        return answer

    def _set_deadlines(self, answer: Answer) -> None:
        """They count from the request's arrival. A prompt's later choices wait for its first one's first token."""
        left = answer.account.arrived - time.monotonic()
        whole_s = min(answer.terms.timeout_s, self._settings.request_timeout_s)
        late = DeadlineError(f"the answer is not whole after {whole_s:g} s")
        answer.deadline = self._loop.call_later(whole_s + left, self._end, answer, late)
        first_s = min(answer.terms.ttft_timeout_s, self._settings.ttft_timeout_s)
        if first_s < whole_s and answer.request.choice == 0:
            late = DeadlineError(f"the answer has no token after {first_s:g} s")
            answer.first_deadline = self._loop.call_later(first_s + left, self._end, answer, late)

    def _end(self, answer: Answer, error: RtpLlmError) -> None:
        self._run(answer, answer.machine.handle(machine.Ended(error)))

    def _run(self, answer: Answer, actions: Iterable[machine.Action]) -> None:
        for action in actions:
            if isinstance(action, machine.Emit):
                self._emit(answer, action.output)
            elif isinstance(action, machine.Submit):
                self._submit(answer, action)
            elif isinstance(action, machine.Cancel):
                self._cancel(action.worker, action.key)
            elif isinstance(action, machine.Fence):
                self._fleet.send(action.worker, fence_message(action.key))
            elif isinstance(action, machine.Place):
                self._wait(answer, action.cause)
            elif isinstance(action, machine.Fail):
                if isinstance(action.error, SuspectError):
                    self._blame(answer.request)
                self._finish(answer, action.error)
            else:
                self._finish(answer, None)

    def _blame(self, request: Request) -> None:
        digest = digest_of(request)
        log.warning(
            "a prompt of %d tokens has ended workers: refused from now on (%s)", len(request.prompt), digest.hex()
        )
        self._ended_workers.add(digest)
        self._fleet.tell_routers(digest)

    def _emit(self, answer: Answer, output: TokenOutput) -> None:
        now = time.monotonic()
        account = answer.account
        if account.last_token is None:
            account.first_token = now
            account.cached_tokens = output.num_cached_tokens
            account.at_worker = output.times or account.at_worker
            self._metrics.time_to_first_token.observe(now - account.arrived)
            for phase, seconds in account.to_first_token().items():
                self._metrics.phase_duration.labels(phase).observe(seconds)
            if answer.first_deadline is not None:
                answer.first_deadline.cancel()
        else:
            self._metrics.inter_token_latency.observe(now - account.last_token)
        account.last_token = now
        account.tokens += 1
        self._metrics.output_tokens.inc()
        self._waiting.charge(answer.tenant, OUTPUT_COST)
        answer.pending.append(output)
        answer.changed.set()
        if len(answer.pending) > self._settings.client_buffer_tokens:
            error = UnavailableError(f"the client reads too slowly: {len(answer.pending)} tokens wait for it")
            self._loop.call_soon(self._end, answer, error)

    def _finish(self, answer: Answer, error: RtpLlmError | None) -> None:
        self._leave_queue(answer)
        for timer in (answer.deadline, answer.first_deadline):
            if timer is not None:
                timer.cancel()
        self._forget_placement(answer)
        key = answer.machine.key
        self._answers.pop((key.request, key.choice), None)
        self._metrics.requests_running.set(len(self._answers))
        account = answer.account
        if account.first_token is not None and account.last_token is not None:
            self._metrics.phase_duration.labels("decode").observe(account.last_token - account.first_token)
        answer.finished, answer.error = True, error
        answer.changed.set()
        self._acknowledge_draining()
        if self._waiting:  # its slot is free
            self._loop.call_soon(self._place_waiting)

    def _acknowledge_draining(self) -> None:
        """A worker that drains may still be needed by answers: by a receiver that waits for its KV, say."""
        if self._draining:
            needed = {worker for answer in self._answers.values() for worker in answer.machine.needed()}
            for worker in self._draining - needed:
                self._fleet.acknowledge_draining(worker)
            self._draining &= needed

    def _cancel(self, worker: WorkerKey, key: RequestKey) -> None:
        if (found := self._fleet.find(worker)) is not None:
            found.note_over(key)
        self._fleet.send(worker, cancel_message(key))

    # --- Placement

    def _wait(self, answer: Answer, cause: str) -> None:
        """Queue for a worker."""
        if cause != "first":
            self._metrics.retries.labels(cause).inc()
        self._forget_placement(answer)
        now = self._loop.time()
        if cause != "busy" or answer.wait_until is None:
            answer.wait_until = now + self._settings.queue_timeout_s
        answer.wait_timer = self._loop.call_at(answer.wait_until, self._give_up_waiting, answer)
        pause_s = self._retries.take(now, self._fleet.num_routers) if cause in LOSSES else 0.0
        if pause_s > 0:
            answer.retry_timer = self._loop.call_later(pause_s, self._queue, answer)
        else:
            self._queue(answer)
        self._acknowledge_draining()

    def _queue(self, answer: Answer) -> None:
        self._waiting.put(answer)
        self._count_waiting(answer.tenant)
        self._loop.call_soon(self._place_waiting)

    def _leave_queue(self, answer: Answer) -> None:
        self._waiting.remove(answer)
        self._count_waiting(answer.tenant)
        for timer in (answer.wait_timer, answer.retry_timer):
            if timer is not None:
                timer.cancel()
        answer.wait_timer = answer.retry_timer = None

    def _count_waiting(self, tenant: str) -> None:
        self._metrics.requests_waiting.set(len(self._waiting))
        self._metrics.tenant_requests_waiting.labels(tenant).set(self._waiting.num_waiting(tenant))

    def _give_up_waiting(self, answer: Answer) -> None:
        if self._fleet.is_paused:  # it waits as long as that lasts, and then anew
            answer.wait_until = self._loop.time() + self._settings.queue_timeout_s
            answer.wait_timer = self._loop.call_at(answer.wait_until, self._give_up_waiting, answer)
            return
        found, longest = len(self._fleet.snapshot), self._fleet.longest_request()
        text = f"no worker took the request within {self._settings.queue_timeout_s:g} s, {found} are connected"
        if _is_too_long(answer, longest):
            text += f"; prompt and answer have {answer.total_tokens} tokens, the largest of them holds {longest}"
        if found and not self._who_understand(answer):
            text += f"; none of them speaks version {answer.protocol} of the protocol, which says what is asked for"
        self._end(answer, UnavailableError(text))
        self._place_waiting()

    def _place_waiting(self) -> None:
        """Places whose turn it is until nobody accepts. Those that no worker there could hold, or understand, wait for one that
        does, and hold up nobody."""
        aside: list[Answer] = []
        try:
            while (answer := self._waiting.first) is not None:
                if answer.wait_until is not None and answer.wait_until <= self._loop.time():
                    break  # its timer is due
                snapshot = self._who_understand(answer)
                is_understood = bool(snapshot) or not self._fleet.snapshot
                if _is_too_long(answer, self._fleet.longest_request()) or not is_understood:
                    self._waiting.remove(answer)
                    aside.append(answer)
                    continue
                placement = self._policy.choose(snapshot, self._query(answer))
                if placement is None:
                    break
                chosen = [placement.sender] if placement.receiver is None else [placement.sender, placement.receiver]
                if (old := next((view.id for view in chosen if view.protocol < answer.protocol), None)) is not None:
                    text = f"which does not speak version {answer.protocol} of the protocol"  # nor what is asked for
                    self._end(answer, UnavailableError(f"the policy chose worker {old}, {text}"))
                    continue
                self._leave_queue(answer)
                if not answer.is_charged:  # a worker that was lost is not the tenant's to pay
                    self._waiting.charge(answer.tenant, answer.new_tokens)
                    answer.is_charged = True
                self._place(answer, placement)
        finally:
            for answer in aside:
                self._waiting.put(answer)

    def _query(self, answer: Answer) -> PlacementQuery:
        digest = self._fleet.model_digest
        return PlacementQuery(
            prompt_tokens=answer.prompt_tokens,
            total_tokens=answer.total_tokens,
            must_run_alone=answer.machine.must_run_alone or answer.tokens_left <= 1,
            block_hashes=None if digest is None else answer.block_hashes(digest),
            protocol=answer.protocol,
            session=answer.session,
            prefer=[worker.id for worker in answer.machine.prefer],
            random=self._random,
            now=(now := self._loop.time()),
            waited_s=now - answer.account.arrived,
        )

    def _who_understand(self, answer: Answer) -> Snapshot:
        """Of the workers that are there, those that know all that is asked for."""
        snapshot = self._fleet.snapshot
        if answer.protocol == 1 or all(view.protocol >= answer.protocol for view in snapshot.values()):
            return snapshot
        return {id: view for id, view in snapshot.items() if view.protocol >= answer.protocol and not view.draining}

    def _place(self, answer: Answer, placement: Placement) -> None:
        now = time.monotonic()
        if answer.account.first_token is None:
            answer.account.placed = now
        sender = WorkerKey(placement.sender.id, placement.sender.epoch)
        receiver = None
        if placement.receiver is not None:
            receiver = WorkerKey(placement.receiver.id, placement.receiver.epoch)
            if placement.receiver.numerics_id != placement.sender.numerics_id:
                self._metrics.numerics_mismatches.inc()
        answer.tokens_sent = placement.tokens_sent
        answer.account.workers.append([each.id for each in (sender, receiver) if each is not None])
        self._run(answer, answer.machine.handle(machine.Planned(sender, receiver)))

    def _forget_placement(self, answer: Answer) -> None:
        """Its attempt is over: it counts nowhere any more, whichever of its workers have spoken."""
        if answer.placed is not None:
            key, workers = answer.placed
            answer.placed = None
            for each in workers:
                if (worker := self._fleet.find(each)) is not None:
                    worker.note_over(key)

    def _submit(self, answer: Answer, action: machine.Submit) -> None:
        receiver = None if action.receiver is None else self._fleet.find(action.receiver)
        address = "" if receiver is None else receiver.peer_address
        answer.account.key = str(action.key)
        submit = submit_message(action.key, answer.request, action.output, action.receiver, address, solo=action.solo)
        answer.placed = (action.key, [action.worker] if action.receiver is None else [action.worker, action.receiver])
        if receiver is not None:
            receiver.note_receives(action.key, answer.prompt_tokens)
        sender = self._fleet.find(action.worker)
        if sender is not None:
            sender.note_submitted(action.key, answer.prompt_tokens, runs=action.receiver is None)
        self._fleet.send(action.worker, submit)


def _is_too_long(answer: Answer, longest: int | None) -> bool:
    return longest is not None and answer.total_tokens > longest
