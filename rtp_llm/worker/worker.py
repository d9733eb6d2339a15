"""Worker: one process with one native engine, and everything that speaks for it.

    routers   ◀─gRPC─▶ Routers    ┐
    senders   ◀─gRPC─▶ AsReceiver ├── events ──▶ TransferThread ──▶ engine thread, UCX
    receivers ◀─gRPC─▶ AsSender   ┘ ◀── outbox ──┘             outputs ◀──────────┘

Everything here runs on one event loop and never blocks it: what sessions say becomes events of the native machines, what these
want said comes back through their outbox. Every Submit goes through the native sender, also what runs alone, so one set of
rules (attempt order, Fenced, replay) holds for all.
"""

from __future__ import annotations

import asyncio
import logging
import os

from rtp_llm._native import _engine
from rtp_llm.autoscaling.figures import WorkerFigures
from rtp_llm.config import Config, Pool
from rtp_llm.engine import NativeEngine, build
from rtp_llm.errors import EngineError
from rtp_llm.loaded_weights import WeightsSource
from rtp_llm.pool_state import ApplicationState, PauseMode, PoolState
from rtp_llm.tracing import Tracing
from rtp_llm.wire.convert import key_of, outputs_by_router
from rtp_llm.wire.credentials import Credentials
from rtp_llm.wire.endpoint import SessionTiming
from rtp_llm.wire.key import WorkerKey
from rtp_llm.wire.session import (
    PEER_SERVICE,
    WORKER_SERVICE,
    SessionServer,
    control_method,
    metrics_method,
    reset_prefix_cache_method,
)
from rtp_llm.wire.v1.peer_pb2 import ReceiverMessage, SenderMessage
from rtp_llm.wire.v1.router_pb2 import RouterMessage, Started, WorkerMessage
from rtp_llm.worker import to_wire
from rtp_llm.worker.as_receiver import AsReceiver
from rtp_llm.worker.as_sender import AsSender
from rtp_llm.worker.control import Control
from rtp_llm.worker.drain import Drain
from rtp_llm.worker.figures import Figures, load_message, slots_of_others, worker_figures
from rtp_llm.worker.identity import Identity, draw_epoch
from rtp_llm.worker.pause import Pause
from rtp_llm.worker.routers import Routers
from rtp_llm.worker.spans import WorkerSpans
from rtp_llm.worker.transfer_thread import TransferThread

log = logging.getLogger("rtp_llm.worker")

LOAD_DELAY_S = (
    0.02  # the load is looked at so long after what may have changed it: once for all that happens in between
)


class Worker:
    """Owns `engine` (built, not started) and stops it. Made and used on one event loop.

        worker = await Worker.load(config, pool, worker_id)     # or Worker(config, pool, worker_id, engine)
        await worker.start()          # worker.address is known now
        …
        await worker.drain()          # finishes what it has
        await worker.stop()

    Raises:
        UnavailableError: UCX or the gRPC server can't listen.
    """

    def __init__(
        self,
        config: Config,
        pool: Pool,
        worker_id: str,
        engine: NativeEngine,
        state: ApplicationState | None = None,
    ) -> None:
        """`state`: by whose weights `engine` was built; default: the configuration's."""
        self._config = config
        self._engine = engine
        self._figures = Figures(max_model_len=engine.max_model_len, block_tokens=engine.block_tokens)
        key = WorkerKey(worker_id, draw_epoch())
        settings = config.engine_of(pool)
        rows, self._step_timeout_s = settings.max_num_batched_tokens, settings.step_timeout_s
        self._transfer = TransferThread(
            engine, key, config.transfer, config.handover, config.worker, max(rows, engine.block_tokens)
        )
        self.identity = Identity(
            key=key,
            pool=str(pool),
            model=config.served_name,
            model_digest=engine.model_digest,
            layout_json=engine.layout_json,
            layout_fingerprint=engine.layout_fingerprint,
            numerics_id=engine.numerics_id,
            max_model_len=engine.max_model_len,
            block_tokens=engine.block_tokens,
            transport_address=self._transfer.transport_address,
            describe=_engine.describe_difference,
            on_numerics_mismatch=self._figures.metrics.numerics_mismatches.inc,
        )
        timing = SessionTiming.of(config.handover)
        credentials = Credentials.of(config.worker)
        self._routers = Routers(key, self.identity.worker_hello, self, timing, config.handover.router_expiry_s)
        resource = {"service.instance.id": worker_id, "rtp_llm.pool": str(pool)}
        self._tracing = Tracing.of(config.otel, resource)
        self._spans = None if self._tracing is None else WorkerSpans(self._tracing, key, str(pool))
        self._as_receiver = AsReceiver(self.identity, self._transfer.expect, self, timing)
        self._as_sender = AsSender(self.identity, self._transfer, timing, credentials)
        self._drain = Drain(self._routers, self.is_idle, self._transfer.draining_ended)
        self._pause = Pause(engine, self._drain, self.is_idle, self.fault)
        state = state or ApplicationState(base=config.model.path)
        self.control = Control(self, pool, state, config.worker.drain_timeout_s)
        self._server = SessionServer(config.worker.host, config.worker.advertise_host, credentials)
        self._server.add(
            WORKER_SERVICE,
            {
                "Session": self._routers.acceptor.handler(),
                "Metrics": metrics_method(self.metrics),
                "Control": control_method(self.control.asked),
                "ResetPrefixCache": reset_prefix_cache_method(self._engine.reset_prefix_cache),
            },
        )
        self._server.add(PEER_SERVICE, {"Session": self._as_receiver.acceptor.handler()})
        self._outputs_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._pulse: asyncio.TimerHandle | None = None
        self._pulse_is_near = False
        self._something_is_due = False  # the pulse comes for what was put off
        self._stopping = False
        self._ran = False  # since the last idle check
        self._suspicious = False  # the last one found something
        self._hangs = False
        self._fault = ""
        self._failed = asyncio.Event()
        self._leaving: asyncio.Future[None] | None = None

    @property
    def key(self) -> WorkerKey:
        return self.identity.key

    @property
    def address(self) -> str:
        """Of the session server, for routers and peers; empty before start()."""
        return self.identity.peer_address

    @classmethod
    async def load(
        cls,
        config: Config,
        pool: Pool,
        worker_id: str,
        *,
        workers_here: int | None = None,
        state: ApplicationState | None = None,
    ) -> Worker:
        """Read the model and build the engine off the loop. `workers_here`: how many share this host's memory, this one
        included; by default all of the configuration. `state`: what the others of the application hold.

        Raises:
            ModelError: the model's files can't be served.
        """
        settings = config.engine_of(pool)
        workers = workers_here or max(config.max_workers, 1)
        updated = state.of(pool) if state is not None else PoolState()
        source = WeightsSource(path=updated.weights, version=updated.version) if updated.version else None
        engine = await asyncio.to_thread(build, config.model, settings, workers_here=workers, weights_from=source)
        return cls(config, pool, worker_id, engine, state)

    async def start(self) -> None:
        """Start the native threads, then listen."""
        self._engine.notify_through(self._outputs_fd)
        asyncio.get_running_loop().add_reader(self._outputs_fd, self._on_outputs)
        self._transfer.start(self)
        self._engine.start()
        self._on_pulse()
        await self.control.start()
        self.identity.peer_address = await self._server.start()
        log.info("worker %s (%s) listens on %s", self.key, self.identity.pool, self.address)

    async def drain(self, timeout_s: float | None = None) -> bool:
        """Take no new work, finish what was placed here. False: the time (default: worker.drain_timeout_s) came first. What a
        pause has stopped here is tried again elsewhere."""
        if self._engine.load().paused:
            await self._pause.empty()
            self._engine.resume()
        self._drain.begin()
        return await self._drain.wait(self._config.worker.drain_timeout_s if timeout_s is None else timeout_s)

    async def stop(self) -> None:
        """End sessions and threads; what still runs is lost here and retried elsewhere. Idempotent."""
        self._stopping = True
        if self._pulse is not None:
            self._pulse.cancel()
        self._routers.close()
        await asyncio.gather(self._routers.acceptor.finish(), self._as_receiver.acceptor.finish())
        await self._server.stop()
        await self._as_sender.close()
        if self._outputs_fd >= 0:
            fd, self._outputs_fd = self._outputs_fd, -1
            asyncio.get_running_loop().remove_reader(fd)
            if self._hangs:
                log.error("the engine's thread is left behind: this process must be ended by force")
                return
            await asyncio.to_thread(self._engine.stop)
            await self._transfer.stop()
            os.close(fd)
            if self._tracing is not None:
                await asyncio.to_thread(self._tracing.close)

    @property
    def must_be_killed(self) -> bool:
        """The engine's thread hangs: nobody can join it, so this process doesn't end by itself."""
        return self._hangs

    def check_health(self) -> None:
        """
        Raises:
            EngineError: the engine or the transfer thread has ended, or hangs; says why.
        """
        if self._fault:
            raise EngineError(self._fault)

    async def failed(self) -> None:
        """Returns when check_health() would raise; else never."""
        await self._failed.wait()

    def autoscaling_figures(self) -> WorkerFigures:
        """What autoscaling sees of this worker."""
        return worker_figures(self._engine.load(), self._engine.block_tokens)

    def metrics(self) -> bytes:
        """Prometheus' text."""
        return self._figures.text(self._engine.load(), self._transfer.counts(), self._engine.allocations())

    def is_idle(self) -> bool:
        """Nothing runs, waits or is in flight."""
        load = self._engine.load()
        return load.running == 0 and load.waiting == 0 and self._transfer.is_idle()

    def check_idle(self) -> None:
        """
        Raises:
            EngineError: a block, a grant, a sequence or a transfer is left over; names it.
        """
        self._transfer.check_idle()
        self._engine.check_idle()

    def trace(self) -> list[tuple[object, ...]]:
        """When the parts of recent handovers happened; csrc/transfer/trace.h."""
        return self._transfer.trace()

    # --- Controlled

    def check_weights(self, directory: str) -> None:
        self._engine.weights.check(directory)

    async def pause(self, mode: PauseMode, timeout_s: float) -> None:
        await self._pause.begin(mode, timeout_s)

    def resume(self) -> None:
        self._pause.end()
        self._changed()

    async def update_weights(self, directory: str, version: int) -> None:
        await self._pause.update(self._source(directory, version), self._renew)

    def _source(self, directory: str, version: int) -> WeightsSource:
        if directory:
            return WeightsSource(path=directory, version=version)
        return WeightsSource(path=self._config.model.path, load_format=self._config.model.load_format)

    def _renew(self) -> None:
        """This worker has become another one to whoever compares weights: all sessions begin anew with what it is now."""
        self.identity.model_digest = self._engine.model_digest
        self.identity.layout_json = self._engine.layout_json
        self.identity.layout_fingerprint = self._engine.layout_fingerprint
        reason = "other weights are served here now"
        self._as_sender.leave_all(reason)
        self._as_receiver.acceptor.hang_up(reason)
        self._routers.acceptor.hang_up(reason)

    # --- RouterListener; the machines hear the other listeners' events themselves

    def router_connected(self, router_epoch: int) -> None:
        self._transfer.router_connected(router_epoch)

    def router_lost(self, router_epoch: int) -> None:
        self._transfer.router_lost(router_epoch)

    def router_said(self, router_epoch: int, message: RouterMessage) -> None:
        if message.HasField("submit"):
            submit = message.submit
            log.debug("request %.100r is placed here as %s", submit.request.request_id, key_of(submit.key))
        if self._spans is not None:
            self._spans.router_said(message)
        self._transfer.router_said(router_epoch, message)
        self._changed()

    # --- SenderListener; as above

    def sender_said(self, sender: WorkerKey, message: SenderMessage) -> None:
        if self._spans is not None:
            self._spans.sender_said(message)
        self._transfer.sender_said(sender, message)

    def sender_lost(self, sender: WorkerKey) -> None:
        self._transfer.sender_lost(sender)

    # --- TransferListener

    def to_router(self, router_epoch: int, message: WorkerMessage) -> None:
        if self._spans:  # some are under way
            self._spans.to_router(router_epoch, message)
        self._routers.send(router_epoch, message)
        self._changed()

    def to_sender(self, sender: WorkerKey, message: ReceiverMessage) -> None:
        self._as_receiver.send(sender, message)
        self._changed()

    def to_receiver(self, receiver: WorkerKey, message: SenderMessage) -> None:
        if self._spans:
            self._spans.to_receiver(message)
        self._as_sender.send(receiver, message)

    def meet(self, receiver: WorkerKey, address: str) -> None:
        self._as_sender.meet(receiver, address)

    def want_endpoint(self, receiver: WorkerKey) -> None:
        self._as_sender.ask_endpoint(receiver)

    def warning(self, text: str) -> None:
        log.warning("transfer: %s", text)

    def fault(self, text: str) -> None:
        """The engine or the transfer thread has ended or hangs: this worker can't serve any more. Its server goes, so that
        routers and peers lose it at once and go on elsewhere; check_health says why."""
        if self._fault:
            return
        self._fault = text
        log.error("this worker has failed: %s", text)
        self._drain.give_up()
        self._failed.set()
        self._leaving = asyncio.ensure_future(self._server.stop(0))

    # --- The engine's outputs

    def _on_outputs(self) -> None:
        """A step's tokens, straight to their routers; then the machines remember them for a replay. What the machines said
        before a step comes before its tokens."""
        os.eventfd_read(self._outputs_fd)
        columns = self._engine.take_outputs()
        self._transfer.deliver()
        for router_epoch, outputs in outputs_by_router(columns).items():
            if self._spans:
                self._spans.outputs(router_epoch, outputs)
            self._routers.send(router_epoch, WorkerMessage(outputs=outputs))
        for key in columns.started:
            self._routers.send(key.router_epoch, WorkerMessage(started=Started(key=to_wire.key(key))))
        if len(columns):
            self._transfer.remember(columns)
        if failure := self._engine.failure:
            self.fault(failure)
        self._changed()

    # --- The pulse: Load after changes, and a look around every heartbeat

    def _changed(self) -> None:
        """Something happened that Load may show: publish it soon, once for all that happens until then."""
        self._ran = True
        if not self._pulse_is_near:
            self._pulse_is_near = True
            self._schedule_pulse(LOAD_DELAY_S)

    def _schedule_pulse(self, delay_s: float) -> None:
        if self._stopping:  # sessions and machines still speak while they end
            return
        if self._pulse is not None:
            self._pulse.cancel()
        self._pulse = asyncio.get_running_loop().call_later(delay_s, self._on_pulse)

    def _on_pulse(self) -> None:
        quiet, self._pulse_is_near = not (self._pulse_is_near or self._something_is_due), False
        self._schedule_pulse(self._config.handover.heartbeat_s)  # first: whatever fails below, the pulse goes on
        now = asyncio.get_running_loop().time()
        due = [due_s for due_s in (self._publish_load(now), self._routers.publish_cache(self._engine, now)) if due_s]
        self._something_is_due = bool(due)
        if due:
            self._schedule_pulse(min(*due, self._config.handover.heartbeat_s))
        self._drain.look()
        self._check_step()
        if quiet and self._ran and self.is_idle():
            self._ran = self._check_what_is_left()

    def _publish_load(self, now: float) -> float | None:
        load = self._engine.load()
        return self._routers.publish(
            load_message(
                load,
                max_queued_tokens=self._config.worker.max_queued_tokens,
                block_tokens=self._engine.block_tokens,
            ),
            lambda router_epoch: slots_of_others(load, router_epoch),
            now,
        )

    def _check_step(self) -> None:
        """A step that never ends is how a device usually fails: nothing raises, sessions and Loads go on."""
        running_s, limit_s = self._engine.load().step_running_s, self._step_timeout_s
        if running_s > limit_s:
            self._hangs = True
            self.fault(f"the engine's step has run for {running_s:.0f} s, engine.step_timeout_s is {limit_s:g}")

    def _check_what_is_left(self) -> bool:
        """Whether to look again. A cancelled sequence may take a chunk to go: what is there twice is a finding."""
        try:
            self.check_idle()
        except EngineError as error:
            if not self._suspicious:
                self._suspicious = True
                return True
            self._figures.metrics.idle_check_failures.inc()
            log.error("idle, but not clean: %s", error)
        self._suspicious = False
        return False
