"""Fleet: the router's sessions with all workers, and what it knows of each: hello, last Load, own unacknowledged submits.

It follows a Membership; a worker that left the membership keeps its session while that lives. What workers say goes to one
`FleetListener`. One event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping
from itertools import chain
from typing import Any, Protocol, TypeVar

from rtp_llm.directory import ROUTER, Member, Membership
from rtp_llm.lasting_task import LastingTask
from rtp_llm.metrics import RouterMetrics
from rtp_llm.pool_state import ApplicationState, PauseMode, newest
from rtp_llm.router import request_machine as machine
from rtp_llm.router.cache_feed import CacheFeed
from rtp_llm.router.placement import FleetEvent, Snapshot, StepMeasured, ViewChanged, WorkerGone, WorkerView
from rtp_llm.router.placement.load import WorkerLedger, WorkerLoad
from rtp_llm.router.placement.step_cost import Step
from rtp_llm.router.request_machine import WorkerSaid
from rtp_llm.wire.convert import arrival_times_of, error_of, key_of, outputs_of, pause_of
from rtp_llm.wire.credentials import NO_CREDENTIALS, Credentials
from rtp_llm.wire.key import RequestKey, WorkerKey
from rtp_llm.wire.session import SessionTiming, WorkerSession, router_metrics, tell_router
from rtp_llm.wire.v1.router_pb2 import (
    Draining,
    DrainingAcknowledged,
    Load,
    RouterMessage,
    StepSample,
    WatchCache,
    WorkerHello,
    WorkerMessage,
)
from rtp_llm.within import within

log = logging.getLogger("rtp_llm.router")

# live: gets requests; refused: it won't have this router, or serves something else.
WORKER_STATES = ("live", "draining", "paused", "connecting", "unreachable", "refused")


class FleetListener(Protocol):
    """Called on the loop; must not block."""

    def said(self, said: WorkerSaid) -> None:
        """An output, or a notice about a key."""

    def draining(self, worker: WorkerKey, pause: PauseMode | None) -> None:
        """It wants no new work: for good, or until `undrained`, what runs there being ended for ABORT. Answered by
        `Fleet.acknowledge_draining` once no live answer needs it."""

    def undrained(self, worker: WorkerKey) -> None:
        """Its pause is over."""

    def resumed(self, worker: WorkerKey) -> None:
        """The session is back, nothing is lost: time for an Attach."""

    def lost(self, worker: WorkerKey) -> None:
        """This epoch of the worker is lost."""

    def observe(self, event: FleetEvent) -> None:
        """The snapshot has changed so."""

    def room_changed(self) -> None:
        """A worker may take something that none took before."""


def load_of(load: Load) -> WorkerLoad:
    return WorkerLoad(
        queued_tokens=load.queued_tokens,
        max_queued_tokens=load.max_queued_tokens,
        running=load.running,
        waiting=load.waiting,
        free_blocks=load.blocks_free,
        total_blocks=load.blocks_total,
        block_tokens=load.block_tokens,
        slots=load.slots,
        slots_of_others=load.slots_of_others,
    )


def step_of(message: StepSample) -> Step:
    return Step(
        decode_rows=message.decode_rows,
        context_tokens=message.context_tokens,
        prefill_rows=message.prefill_rows,
        attention_pairs=message.attention_pairs,
    )


def said_of(
    message: WorkerMessage, worker: WorkerKey, router_epoch: int, preempted: bool = False
) -> Iterator[WorkerSaid]:
    """What `worker` says about keys; nothing for a message that a later version added. `preempted`: it is paused, so what it
    gives up is no fault.

    Raises:
        ProtocolError: as outputs_of and arrival_times_of.
    """
    kind = message.WhichOneof("message")
    if kind == "outputs":
        for key, output in outputs_of(message.outputs, router_epoch):
            yield machine.Output(key, worker, output)
    elif kind == "failed":
        yield machine.Failed(key_of(message.failed.key), worker, error_of(message.failed))
    elif kind == "busy":
        yield machine.Busy(key_of(message.busy.key), worker)
    elif kind == "released":
        yield machine.Released(key_of(message.released.key), worker)
    elif kind == "committed":
        yield machine.Committed(key_of(message.committed.key), worker, arrival_times_of(message.committed))
    elif kind == "fenced":
        yield machine.Fenced(key_of(message.fenced.key), worker, preempted)
    elif kind == "started":
        yield machine.Started(key_of(message.started.key), worker)


class RemoteWorker:
    """One place in the fleet: its session, and the incarnation that lives there now."""

    def __init__(self, member: Member, fleet: Fleet) -> None:
        self.member = member
        self.key = WorkerKey(member.id, 0)
        self.hello = WorkerHello()
        self.load_at = 0.0  # when the last Load came, by the loop's clock
        self.last_step_s = 0.0  # of the last step with rows that it told of; 0: of none
        self._has_spoken = False  # in this connection
        self.draining = False
        self.pause: PauseMode | None = None  # what it drains for; None: it leaves
        self.draining_round = 0
        self.is_refused = False  # by it, for ever
        self.departed = False  # the membership doesn't name it any more
        self._ledger = WorkerLedger()
        self._feed = CacheFeed(member.id)
        self._fleet = fleet
        self.session = WorkerSession(
            WorkerKey(member.id, member.epoch),
            member.address,
            router_id=fleet.router_id,
            router_epoch=fleet.router_epoch,
            events=self,
            timing=fleet.timing,
            credentials=fleet.credentials,
        )

    @property
    def is_live(self) -> bool:
        return self.key.epoch != 0 and self.session.is_connected

    @property
    def peer_address(self) -> str:
        """Where senders meet it."""
        return self.hello.peer_address

    @property
    def state(self) -> str:
        """One of WORKER_STATES."""
        if self.is_refused or (self.is_live and not self._fleet.serves_this_model(self)):
            return "refused"
        if self.is_live:
            return "paused" if self.pause is not None else "draining" if self.draining else "live"
        return "unreachable" if self.session.failure else "connecting"

    @property
    def load(self) -> WorkerLoad:
        return self._ledger.load

    @property
    def has_said_load(self) -> bool:
        return self.load.max_queued_tokens > 0

    @property
    def cache_version(self) -> int | None:
        """Number of the last event of its prefix cache that this router has heard of; None: it listens to none."""
        return self._feed.next - 1 if self._feed.next else None

    def view(self) -> WorkerView:
        return self._ledger.view(
            id=self.key.id,
            epoch=self.key.epoch,
            pool=self.hello.pool,
            load_at=self.load_at,
            max_model_len=self.hello.max_model_len,
            layout=self.hello.layout_fingerprint,
            numerics_id=self.hello.numerics_id,
            draining=self.draining,
            protocol=self.session.protocol,
        )

    def note_submitted(self, key: RequestKey, prompt_tokens: int, *, runs: bool) -> None:
        """`runs`: alone, to its end."""
        self._ledger.submitted(key, prompt_tokens, runs=runs)
        self._fleet.view_changed(self)

    def note_receives(self, key: RequestKey, prompt_tokens: int) -> None:
        self._ledger.receives(key, prompt_tokens)
        self._fleet.view_changed(self)

    def forget(self, key: RequestKey) -> None:
        """The worker has spoken of `key`: its Load speaks for it now."""
        if self._ledger.forget(key):
            self._fleet.view_changed(self)

    def note_over(self, key: RequestKey) -> None:
        """The attempt is over: it ended, or was cancelled."""
        if self._ledger.over(key):
            self._fleet.view_changed(self)

    def watch_cache(self) -> None:
        """From a snapshot on."""
        self._feed = CacheFeed(self.member.id)
        self._ask_cache()

    def _ask_cache(self) -> None:
        self.session.send(RouterMessage(watch_cache=WatchCache(next=self._feed.next)))

    # --- SessionEvents

    def connected(self, hello: WorkerMessage, *, resumed: bool) -> None:
        self.hello = hello.hello
        self.key = WorkerKey(self.member.id, hello.hello.worker.epoch)
        self._has_spoken = False
        if resumed:
            self._fleet.reconsider(self)
            self._fleet.listener.resumed(self.key)
            return
        self.draining, self.pause = False, None
        self._ledger = WorkerLedger()
        self._fleet.reconsider(self)
        log.info("worker %s (%s) at %s is there", self.key, self.hello.pool, self.member.address)
        self._fleet.check_model(self)
        self._fleet.check_numerics(self)
        self._fleet.check_limits(self)

    def message(self, message: WorkerMessage) -> None:
        kind = message.WhichOneof("message")
        if not self._has_spoken:
            self._has_spoken = True
            if self.draining and kind != "draining":  # it says so first, else that ended while the session was broken
                self._drains(Draining(round=self.draining_round, ended=True))
        if kind == "load":
            self._loaded(message.load)
        elif kind in ("cache_snapshot", "cache_events"):
            self._heard_of_cache(message)
        elif kind == "draining":
            self._drains(message.draining)
        else:
            if kind == "busy":
                self._ledger.load = self.load.when_busy(message.busy.queued_tokens, message.busy.limit)
                self._fleet.view_changed(self)
            for said in said_of(message, self.key, self._fleet.router_epoch, self.pause is not None):
                self._fleet.listener.said(said)

    def _drains(self, said: Draining) -> None:
        self.draining, self.pause = not said.ended, pause_of(said.pause)
        self.draining_round = said.round
        if said.ended:
            self._fleet.listener.undrained(self.key)
        else:
            self._fleet.listener.draining(self.key, self.pause)
        self._fleet.reconsider(self)
        self._fleet.listener.room_changed()  # the other pool may stand in for it

    def broken(self, reason: str) -> None:
        log.info("session with worker %s broke: %s", self.key, reason)
        self._fleet.reconsider(self)

    def lost(self, reason: str) -> None:
        self._ledger = WorkerLedger()
        key, self.key = self.key, WorkerKey(self.member.id, 0)
        if key.epoch != 0:  # else it was never met
            if self.draining:
                log.info("worker %s has drained and left: %s", key, reason)
            else:
                log.warning("worker %s is lost: %s", key, reason)
                self._fleet.metrics.worker_losses.inc()
            self._fleet.reconsider(self)
            self._fleet.listener.lost(key)
            self._fleet.listener.room_changed()  # where a pool is empty now, the other stands in for it
        self._fleet.dismiss_if_departed(self)

    def refused(self, reason: str) -> None:
        self.is_refused = True
        log.error("worker %s refuses this router: %s", self.member.id, reason)

    def _loaded(self, load: Load) -> None:
        is_first = not self.has_said_load
        self._ledger.loaded(load_of(load))
        self.load_at = asyncio.get_running_loop().time()
        self.last_step_s = load.step.seconds
        if is_first:
            self._fleet.reconsider(self)
        else:
            self._fleet.view_changed(self)
        if load.step.seconds > 0 and self.member.id in self._fleet.snapshot:
            self._fleet.listener.observe(StepMeasured(self.member.id, step_of(load.step), load.step.seconds))
        self._fleet.room_changed(self)

    def _heard_of_cache(self, message: WorkerMessage) -> None:
        if self.member.id not in self._fleet.snapshot:
            return  # it is asked anew when it enters
        event: FleetEvent | None
        if message.HasField("cache_snapshot"):
            event = self._feed.snapshot(message.cache_snapshot.number, message.cache_snapshot.hashes)
        else:
            event = self._feed.events(message.cache_events.first, message.cache_events.events)
        if event is not None:
            self._fleet.listener.observe(event)
        elif self._feed.has_gap:
            self._ask_cache()


class Fleet:
    """All workers of one router.

    REQUIRES: made on the event loop; `listener` is set before `start()`.
    """

    listener: FleetListener

    def __init__(
        self,
        membership: Membership,
        model: str,
        router_id: str,
        router_epoch: int,
        timing: SessionTiming,
        metrics: RouterMetrics,
        credentials: Credentials = NO_CREDENTIALS,
        max_model_len: int = 0,
        watches_caches: bool = False,
        state: ApplicationState | None = None,
    ) -> None:
        """`watches_caches`: the listener observes CacheReset and CacheChanged, too; `state`: that nobody has changed."""
        self.state = state or ApplicationState()  # the newest that this router has heard of
        self._watches_caches = watches_caches
        self.credentials = credentials
        self.max_model_len = max_model_len  # of the model, as this router is configured
        self.model = model
        self.router_id = router_id
        self.router_epoch = router_epoch
        self.timing = timing
        self.metrics = metrics
        self._membership = membership
        self._members: dict[str, Member] = {}
        self._routers: list[Member] = []  # the others
        self._telling: set[asyncio.Task[None]] = set()
        self._workers: dict[str, RemoteWorker] = {}
        self._watching: LastingTask | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()  # set, and replaced, when a worker came or went
        self._snapshot: dict[str, WorkerView] = {}  # of those that serve this model, stand and have said their Load
        self._reference: str | None = None  # the model digest of those that serve now
        self._longest: int | None = None  # longest_request(), as long as nobody came, went or began to drain
        self._longest_is_known = False
        self._warned: set[frozenset[str]] = set()

    def start(self) -> None:
        self._watching = LastingTask("the watch of the membership", self._watch())

    def check_health(self) -> None:
        """
        Raises:
            TaskError: this router would meet no new worker any more.
        """
        if self._watching is not None:
            self._watching.check()

    async def close(self) -> None:
        if self._watching is not None:
            await self._watching.close()
        for task in self._telling:
            task.cancel()
        await asyncio.gather(*(worker.session.close() for worker in self._workers.values()), *self._closing)
        await asyncio.gather(*self._telling, return_exceptions=True)
        self._workers.clear()

    @property
    def snapshot(self) -> Snapshot:
        """The workers that serve this model, whose session stands and whose Load is known. Kept, not copied: a view is made
        anew when its worker changes, and by nobody else's change."""
        return self._snapshot

    @property
    def model_digest(self) -> str | None:
        """Of those that serve now; None: nobody has come yet."""
        return self._reference

    def live(self) -> list[RemoteWorker]:
        """Those of the snapshot."""
        return [self._workers[worker] for worker in self._snapshot]

    def longest_request(self) -> int | None:
        """Tokens of the longest request, prompt and answer, that a live worker can hold; None: nobody says."""
        if not self._longest_is_known:
            limits = [view.max_model_len for view in self._snapshot.values() if not view.draining]
            self._longest = max(limits) if limits and all(limits) else None
            self._longest_is_known = True
        return self._longest

    def acknowledge_draining(self, key: WorkerKey) -> None:
        if (worker := self.find(key)) is not None:
            acknowledged = DrainingAcknowledged(round=worker.draining_round)
            worker.session.send(RouterMessage(draining_acknowledged=acknowledged))

    @property
    def is_paused(self) -> bool:
        """A pool is paused, and no worker takes new work."""
        pauses = self.state.is_paused or any(each.pause is not None for each in self._workers.values() if each.is_live)
        return pauses and all(view.draining for view in self._snapshot.values())

    def hear(self, state: ApplicationState) -> None:
        """Of a state that somebody holds, or that this router makes."""
        self.state = newest(self.state.base, [self.state, state])

    def met(self) -> list[RemoteWorker]:
        """All of this model that were met and are not lost, whatever weights they serve, by id."""
        met = (each for each in self._workers.values() if each.key.epoch != 0 and each.hello.model == self.model)
        return sorted(met, key=lambda each: each.member.id)

    def find(self, key: WorkerKey) -> RemoteWorker | None:
        """The worker if this incarnation of it is the one that is known now."""
        worker = self._workers.get(key.id)
        return worker if worker is not None and worker.key == key else None

    def send(self, key: WorkerKey, message: RouterMessage) -> bool:
        """False: lost or not connected; Attach and the machine's own rules repair it."""
        worker = self.find(key)
        return worker is not None and worker.session.send(message)

    async def wait_ready(self, timeout_s: float, num_workers: int = 1) -> bool:
        """Whether so many workers are there, within `timeout_s`."""
        with contextlib.suppress(asyncio.TimeoutError):
            await within(timeout_s, self._until_live(num_workers))
        return len(self.live()) >= num_workers

    async def _until_live(self, num_workers: int) -> None:
        while len(self.live()) < num_workers:
            await self._changed.wait()

    def workers(self) -> list[RemoteWorker]:
        """All that the membership names, and those that it named and that still live."""
        return list(self._workers.values())

    def states(self) -> Counter[tuple[str, str]]:
        """Workers by (pool as the membership has it, state)."""
        return Counter((worker.member.pool, worker.state) for worker in self._workers.values())

    async def metrics_texts(self) -> dict[tuple[str, str], str]:
        """(pool, worker id) → exposition, of each live worker that answers in time."""
        asked = {(each.hello.pool, each.member.id): each.session.metrics() for each in self.live()}
        return await _answered(asked)

    async def router_texts(self) -> dict[str, str]:
        """Router id → exposition, of each other router that answers in time."""
        return await _answered(
            {each.id: router_metrics(each.id, each.address, self.credentials) for each in self._routers}
        )

    @property
    def num_routers(self) -> int:
        """Of this application, this one included."""
        return len(self._routers) + 1

    def tell_routers(self, digest: bytes) -> None:
        """Tell the other routers, once, that this prompt has ended workers. Who does not hear of it finds out by itself."""
        for each in self._routers:
            task = asyncio.ensure_future(tell_router(each.id, each.address, self.credentials, digest))
            self._telling.add(task)
            task.add_done_callback(self._told)

    def _told(self, task: asyncio.Task[None]) -> None:
        self._telling.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("%s", error)

    # --- For RemoteWorker.

    def view_changed(self, worker: RemoteWorker) -> None:
        """What placement reads of it, or what this router has placed there."""
        id = worker.member.id
        if id in self._snapshot and (view := worker.view()) != self._snapshot[id]:
            self._snapshot[id] = view
            self.listener.observe(ViewChanged(view))

    def room_changed(self, worker: RemoteWorker) -> None:
        """Its Load has come."""
        view = self._snapshot.get(worker.member.id)
        if view is not None and (view.accepts or view.free_slots > 0):
            self.listener.room_changed()

    def reconsider(self, worker: RemoteWorker) -> None:
        """It came, went, or began to drain."""
        changed = [worker]
        everybody = list(chain([worker], self._workers.values()))
        if self._reference is None or not any(self._serves(each) and not each.draining for each in everybody):
            # Those that take new work come first, and of the others those that serve now.
            live = (each for each in self.met() if each.is_live)
            first = min(live, key=lambda each: (each.draining, not self._serves(each)), default=None)
            self._reference = None if first is None else first.hello.model_digest
            changed = list(self._workers.values())
        for each in changed:
            self._enter_or_leave(each)

    def _enter_or_leave(self, worker: RemoteWorker) -> None:
        id = worker.member.id
        if self._serves(worker) and worker.has_said_load:
            before = self._snapshot.get(id)
            is_new = before is None
            self._snapshot[id] = view = worker.view()
            self.listener.observe(ViewChanged(view))
            if is_new and self._watches_caches:
                worker.watch_cache()
            if before is None or view.draining or before.draining:
                self._membership_changed()
        elif self._snapshot.pop(id, None) is not None:
            self.listener.observe(WorkerGone(id))
            self._membership_changed()

    def _membership_changed(self) -> None:
        self._longest_is_known = False
        self._changed.set()
        self._changed = asyncio.Event()

    def check_model(self, newcomer: RemoteWorker) -> None:
        """Workers of another model, or of other weights than those that serve now, get no requests."""
        if newcomer.hello.model != self.model:
            log.error("worker %s serves model %r, this router %r", newcomer.key, newcomer.hello.model, self.model)
        elif not self.serves_this_model(newcomer):
            log.error("worker %s has other weights than the workers that serve now", newcomer.key)

    def serves_this_model(self, worker: RemoteWorker) -> bool:
        """The model is this router's, and its weights are those that live workers serve."""
        return worker.hello.model == self.model and self._reference in (None, worker.hello.model_digest)

    def _serves(self, worker: RemoteWorker) -> bool:
        return worker.is_live and self.serves_this_model(worker)

    def check_numerics(self, newcomer: RemoteWorker) -> None:
        """Token-for-token equality holds between equal ids; unequal ones may work together, warned once a pair."""
        for other in self.live():
            pair = frozenset((other.hello.numerics_id, newcomer.hello.numerics_id))
            if len(pair) == 2 and pair not in self._warned:
                self._warned.add(pair)
                log.warning(
                    "workers compute with unequal numerics, answers may differ after a handover: %s", sorted(pair)
                )

    def check_limits(self, newcomer: RemoteWorker) -> None:
        """A worker may hold less than the context, or have other blocks than its peers: placement heeds it."""
        limit = newcomer.hello.max_model_len
        if 0 < limit < self.max_model_len:
            log.warning(
                "worker %s holds requests of %d tokens, the context is %d: longer ones go to others, or are refused",
                newcomer.key,
                limit,
                self.max_model_len,
            )
        for other in self.live():
            pair = frozenset((other.hello.layout_fingerprint, newcomer.hello.layout_fingerprint))
            if len(pair) == 2 and pair not in self._warned:
                self._warned.add(pair)
                log.warning(
                    "workers %s (blocks of %d tokens) and %s (%d) have unequal KV layouts: nothing is handed over between them",
                    other.key,
                    other.hello.block_tokens,
                    newcomer.key,
                    newcomer.hello.block_tokens,
                )

    def dismiss_if_departed(self, worker: RemoteWorker) -> None:
        """Lost (or never met) and not a member: its session ends. A member of the same id at a new address takes its place."""
        if not worker.departed or worker.key.epoch != 0 or self._workers.get(worker.member.id) is not worker:
            return
        del self._workers[worker.member.id]
        task = asyncio.create_task(worker.session.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        self._meet_newcomers()

    async def _watch(self) -> None:
        async for members in self._membership.watch():
            for each in members:
                self.hear(each.state)
            self._members = {member.id: member for member in members if member.pool != ROUTER}
            self._routers = [member for member in members if member.pool == ROUTER and member.id != self.router_id]
            for worker in list(self._workers.values()):
                member = self._members.get(worker.member.id)
                worker.departed = member is None or member.address != worker.member.address
                self.dismiss_if_departed(worker)
            self._meet_newcomers()

    def _meet_newcomers(self) -> None:
        for member in self._members.values():
            if member.id not in self._workers:
                worker = self._workers[member.id] = RemoteWorker(member, self)
                worker.session.start()


NameT = TypeVar("NameT")


async def _answered(asked: Mapping[NameT, Coroutine[Any, Any, str]]) -> dict[NameT, str]:
    """The metrics of those that answer. Who doesn't may be dying: its channel is closed under the call."""
    answers = await asyncio.gather(*asked.values(), return_exceptions=True)
    for answer in answers:
        if not isinstance(answer, str):
            log.warning("%s", str(answer) or type(answer).__name__)
    return {name: answer for name, answer in zip(asked, answers, strict=True) if isinstance(answer, str)}
