"""A worker process: the native machines, a toy engine on one pool, sessions with routers and peers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.simulator.data_plane import TOKEN_LAYER_BYTES
from tests.simulator.engine import Engine
from tests.simulator.native import action, engine, event, message
from tests.simulator.network import LOST_AFTER_S, Session
from tests.simulator.pool import BLOCK_TOKENS, NUM_GROUPS, Pool, Slots, num_blocks, states_of
from tests.simulator.world import Process, Violation

if TYPE_CHECKING:
    from tests.simulator.walk import Cluster


class Hello:
    """First message of a session, and a worker's answer to it: who speaks."""

    def __init__(self, name: Any) -> None:
        self.name = name


class Draining:
    """Worker → router."""


class Grants:
    """The receiver's blocks and slots; rooms are (blocks, prefix_blocks)."""

    def __init__(self, pool: Pool, slots: Slots, watermark: int) -> None:
        self.pool, self.slots, self.watermark = pool, slots, watermark

    def grant(self, spec: Any) -> tuple[list[int], int] | None:
        if not self.slots.grant():
            return None
        tokens = [*spec.prompt, *spec.output]
        hits = self.pool.match(states_of(tokens), len(tokens) // BLOCK_TOKENS)
        count = num_blocks(len(tokens)) - len(hits)
        fresh = self.pool.take(count, "granted") if self.pool.available() - count >= self.watermark else None
        if fresh is None:
            self.pool.release(hits)
            self.slots.give_back()
            return None
        return hits + fresh, len(hits)

    def join(self, blocks: list[int], prefix: int) -> None:
        self.pool.join(blocks[prefix:])

    def quarantine(self, blocks: list[int], prefix: int) -> None:
        self.slots.give_back()
        self.pool.release(blocks[:prefix])
        self.pool.quarantine(blocks[prefix:])

    def free_quarantined(self, blocks: list[int], prefix: int) -> None:
        self.pool.free_quarantined(blocks[prefix:])


class PeerLink:
    """This worker as sender, and one receiver that it has met or is meeting."""

    def __init__(self, heard: float) -> None:
        self.session: Session | None = None
        self.heard = heard
        self.lost = False


class Worker:
    def __init__(
        self, cluster: Cluster, name: str, epoch: int, pool_size: int, num_slots: int, max_queued_tokens: int
    ) -> None:
        self.cluster, self.world = cluster, cluster.world
        self.key = engine.WorkerKey(name, epoch)
        self.process = Process(repr(self.key))
        self.max_queued_tokens = max_queued_tokens
        self.pool = Pool(pool_size)
        self.slots = Slots(num_slots)
        self.engine = Engine(self.world, self.process, self.pool, self.slots, self._listen, self._emit)
        config = engine.HandoverConfig(
            num_layers=NUM_GROUPS,
            layers_per_message=1,
            block_tokens=BLOCK_TOKENS,
            token_layer_bytes=TOKEN_LAYER_BYTES,
            max_push_tokens=8,
            max_waiting_reserves=4,
        )
        self.handover = engine.Handover(self.key, config, Grants(self.pool, self.slots, watermark=1))
        self.routers: dict[int, Session] = {}
        self.receivers: dict[Any, PeerLink] = {}
        self.senders: dict[Any, Session] = {}
        self.draining = False
        self.acknowledged: set[int] = set()
        self._tick_at: float | None = None

    # --- the machines

    def post(self, happened: Any) -> None:
        for wanted in self.handover.handle(happened, self.world.now):
            self._perform(wanted)
        self._watch_deadline()

    def accept(self, sender: Any, header: Any, payload_bytes: int) -> Any:
        answer, actions = self.handover.accept(sender, header, payload_bytes, self.world.now)
        for wanted in actions:
            self._perform(wanted)
        self._watch_deadline()
        return answer

    def _watch_deadline(self) -> None:
        deadline = self.handover.next_deadline()
        if deadline is None or (self._tick_at is not None and self._tick_at <= deadline):
            return
        self._tick_at = deadline

        def tick() -> None:
            if self._tick_at == deadline:
                self._tick_at = None
                self.post(event.Tick())

        self.world.at(deadline, self.process, tick)

    def _perform(self, wanted: Any) -> None:
        self.world.log(self.key, "does", wanted)
        self.cluster.did(self, type(getattr(wanted, "body", wanted)).__name__)
        if isinstance(wanted, action.ToRouter):
            self.send_router(wanted.router_epoch, wanted.body)
        elif isinstance(wanted, action.ToSender):
            session = self.senders.get(wanted.sender)
            if session is not None:
                session.send(self, wanted.body)
        elif isinstance(wanted, action.ToReceiver):
            link = self.receivers.get(wanted.receiver)
            if link is not None and link.session is not None:
                link.session.send(self, wanted.body)
        elif isinstance(wanted, action.Meet):
            self._meet(wanted.receiver)
        elif isinstance(wanted, action.EnqueueSequence):
            self.engine.add(wanted.spec, is_sender=wanted.role == engine.Role.SENDER)
        elif isinstance(wanted, action.JoinSequence):
            self.cluster.joined(self, wanted.spec.key)
            self.engine.join(wanted.spec, wanted.blocks)
        elif isinstance(wanted, action.CancelSequence):
            self.engine.cancel(wanted.key)
        elif isinstance(wanted, action.ReleaseBlocks):
            self.engine.release(wanted.key)
        elif isinstance(wanted, action.PushLayers):
            self.cluster.data_plane.push(self, self.cluster.worker(wanted.receiver), wanted)
        elif isinstance(wanted, action.CloseEndpoint):
            self.cluster.data_plane.close(self, wanted.peer, wanted.direction)
        else:
            raise TypeError(f"unknown action {wanted}")

    # --- the engine

    def _listen(self, what: str, **fields: Any) -> None:
        if what == "scheduled":
            self.post(event.Scheduled(**fields))
        elif what == "layers":
            self.post(
                event.LayersComputed(
                    key=fields["key"],
                    first_layer=fields["group"],
                    num_layers=1,
                    first_token=fields["first_token"],
                    tokens=fields["tokens"],
                )
            )
        elif what == "prefilled":
            first = engine.SampledToken(position=fields["position"], token=fields["token"], finish=fields["finish"])
            self.post(event.Prefilled(key=fields["key"], first=first))
        elif what == "finished":
            self.post(event.Finished(key=fields["key"], finish=fields["finish"]))
        else:
            self.post(event.RoomChanged())

    def _emit(self, key: Any, position: int, token: int, finish: int) -> None:
        sampled = engine.SampledToken(position=position, token=token, finish=finish)
        self.send_router(key.router_epoch, message.Outputs(key=key, tokens=[sampled]))
        self.post(event.Output(key=key, token=sampled))

    # --- sessions

    def send_router(self, epoch: int, body: Any) -> None:
        session = self.routers.get(epoch)
        if session is not None:
            session.send(self, body)

    def on_message(self, session: Session, body: Any) -> None:
        if isinstance(body, Hello):
            if isinstance(body.name, int):
                self.routers[body.name] = session
                session.send(self, Hello(self.key))
                self.post(event.RouterConnected(router_epoch=body.name))
                if self.draining:
                    session.send(self, Draining())
            else:
                self.senders[body.name] = session
            return
        self.world.log(self.key, "hears", body)
        for epoch, known in self.routers.items():
            if known is session:
                self._from_router(epoch, body)
                return
        for key, known in self.senders.items():
            if known is session:
                self.post(event.FromSender(sender=key, body=body))
                return
        for key, link in self.receivers.items():
            if link.session is session:
                self.post(event.FromReceiver(receiver=key, body=body))
                return

    def _from_router(self, epoch: int, body: Any) -> None:
        if isinstance(body, message.DrainingAcknowledged):
            self.acknowledged.add(epoch)
        self.post(
            event.FromRouter(
                router_epoch=epoch,
                body=body,
                queued_tokens=self.engine.queued_tokens(),
                max_queued_tokens=self.max_queued_tokens,
            )
        )

    def on_break(self, session: Session) -> None:
        for epoch, known in list(self.routers.items()):
            if known is session:
                del self.routers[epoch]
                self.post(event.RouterLost(router_epoch=epoch))
        for key, known in list(self.senders.items()):
            if known is session:
                limit = session.heard[1] + LOST_AFTER_S
                self.world.at(limit, self.process, lambda key=key: self._sender_silent(key, session))
        for key, link in self.receivers.items():
            if link.session is session:
                link.session, link.heard = None, session.heard[0]
                self.world.after(self.world.between(0.05, 0.6), self.process, lambda key=key: self._connect(key))

    def on_silence(self, session: Session) -> None:
        for epoch, known in list(self.routers.items()):
            if known is session:
                del self.routers[epoch]
                self.post(event.RouterLost(router_epoch=epoch))
        for key, known in list(self.senders.items()):
            if known is session:
                self._sender_silent(key, session)
        for key, link in self.receivers.items():
            if link.session is session:
                self._receiver_lost(key, "silence")

    def _sender_silent(self, key: Any, session: Session) -> None:
        if self.senders.get(key) is session:
            del self.senders[key]
            self.post(event.SenderLost(sender=key))

    def _meet(self, key: Any) -> None:
        link = self.receivers.get(key)
        if link is None or link.lost:
            self.receivers[key] = PeerLink(self.world.now)
            self.world.after(self.world.between(0.001, 0.02), self.process, lambda: self._connect(key))

    def _connect(self, key: Any) -> None:
        link = self.receivers[key]
        if link.session is not None or link.lost:
            return
        peer = self.cluster.worker(key)
        if peer is None or not peer.process.alive:
            self._receiver_lost(key, "refused")
        elif self.world.now - link.heard >= LOST_AFTER_S:
            self._receiver_lost(key, "silence")
        elif self.cluster.unreachable(self.process, peer.process):
            self.world.after(0.2, self.process, lambda: self._connect(key))
        else:
            link.session = Session(self.world, self.cluster.faults, self, peer)
            self.cluster.sessions.append(link.session)
            link.session.send(self, Hello(self.key))
            self._heartbeat(key, link, link.session)

    def _heartbeat(self, key: Any, link: PeerLink, session: Session) -> None:
        def due() -> None:
            if link.session is session:
                self.post(event.HeartbeatDue(receiver=key))
                self._heartbeat(key, link, session)

        self.world.after(0.5, self.process, due)

    def _receiver_lost(self, key: Any, reason: str) -> None:
        link = self.receivers[key]
        link.lost, link.session = True, None
        self.post(event.ReceiverLost(receiver=key, reason=reason))

    # --- leaving

    def drain(self) -> None:
        self.draining = True
        for session in self.routers.values():
            session.send(self, Draining())
        self._leave_when_idle()

    def _leave_when_idle(self) -> None:
        known = {router.epoch for router in self.cluster.routers if router.process.alive}
        if known <= self.acknowledged and self.handover.idle() and self.engine.idle():
            self.cluster.left(self)
        else:
            self.world.after(0.1, self.process, self._leave_when_idle)

    def check_at_rest(self) -> None:
        if not self.handover.idle():
            raise Violation(f"{self.key} at rest: {self.handover.counts()}")
        if not self.engine.idle():
            raise Violation(f"{self.key}: the engine still has {self.engine.waiting} {self.engine.running}")
        for state in ("used", "granted", "quarantined"):
            if self.pool.count(state):
                raise Violation(f"{self.key} at rest: {self.pool.count(state)} blocks {state}")
        if self.slots.taken or self.slots.claimed:
            raise Violation(f"{self.key} at rest: {self.slots.taken} slots taken, claimed: {self.slots.claimed}")

    def at_rest(self) -> bool:
        return self.handover.idle() and self.engine.idle()
