"""KV messages between pools. Writes are slow and may come late; whoever is written or read then must still be what it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.simulator.native import engine, event
from tests.simulator.pool import BLOCK_TOKENS, MASK
from tests.simulator.world import Violation, World

if TYPE_CHECKING:
    from tests.simulator.worker import Worker

TOKEN_LAYER_BYTES = 10
Pieces = dict[tuple[int, int], int]  # (layer group, position) -> state


def checksum(pieces: Pieces) -> int:
    return sum(mix64(state + (group << 32) + position) for (group, position), state in pieces.items()) & MASK


def mix64(x: int) -> int:
    """SplitMix64's finalizer: without it two errors may cancel out."""
    x &= MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


@dataclass(eq=False)
class Push:
    """One message; `done` once its sender has heard of it."""

    action: Any
    pieces: Pieces
    source: list[tuple[int, int]]  # (block, generation)
    done: bool = False


@dataclass(eq=False)
class Receive:
    push: Push
    grant: int
    blocks: list[tuple[int, int]]
    first_token: int
    done: bool = False


@dataclass(eq=False)
class Endpoint:
    sender: Worker
    receiver: Worker
    broken: bool = False
    closed_by_receiver: bool = False
    pushes: list[Push] = field(default_factory=list)
    receives: list[Receive] = field(default_factory=list)


class DataPlane:
    def __init__(self, world: World) -> None:
        self.world = world
        self.bad_bytes = 0.0  # chance that a message arrives wrong
        self.stuck = 0.0  # chance that a message's data never comes
        self.endpoints: list[Endpoint] = []
        self.num_refused = self.num_bad = self.num_late_writes = 0

    # --- sending

    def push(self, sender: Worker, receiver: Worker | None, action: Any) -> None:
        header = action.header
        pieces: Pieces = {}
        for position in range(header.first_token, header.first_token + header.tokens):
            block = sender.pool.blocks[action.blocks[(position - header.first_token) // BLOCK_TOKENS]]
            for group in range(header.first_layer, header.first_layer + header.num_layers):
                if (group, position) not in block.content:
                    raise Violation(f"{action.key}: position {position} is pushed before it is computed")
                pieces[group, position] = block.content[group, position]
        source = [(number, sender.pool.blocks[number].generation) for number in action.blocks]
        push = Push(action, pieces, source)
        if receiver is None or not receiver.process.alive:
            self.world.after(0.01, sender.process, lambda: self._push_done(sender, push, ok=False))
            return
        endpoint = self._endpoint(sender, receiver)
        endpoint.pushes.append(push)
        self.world.after(self.world.between(0.0005, 0.02), receiver.process, lambda: self._arrive(endpoint, push))
        if self.world.chance(0.5):  # small messages complete before they arrive
            self._finish_push(endpoint, push, ok=True)

    def _endpoint(self, sender: Worker, receiver: Worker) -> Endpoint:
        for endpoint in self.endpoints:
            if endpoint.sender is sender and endpoint.receiver is receiver and not endpoint.broken:
                return endpoint
        endpoint = Endpoint(sender, receiver)
        self.endpoints.append(endpoint)
        return endpoint

    def _finish_push(self, endpoint: Endpoint, push: Push, *, ok: bool) -> None:
        def finish() -> None:
            if push in endpoint.pushes:
                endpoint.pushes.remove(push)
                self._push_done(endpoint.sender, push, ok=ok)

        self.world.after(self.world.between(0.0002, 0.02), endpoint.sender.process, finish)

    def _push_done(self, sender: Worker, push: Push, *, ok: bool) -> None:
        for number, generation in push.source:
            block = sender.pool.blocks[number]
            if block.generation != generation or block.state != "used":
                raise Violation(f"{push.action.key}: block {number} is {block.state} while it is sent")
        sender.post(
            event.PushDone(
                key=push.action.key,
                grant=push.action.header.grant,
                ok=ok,
                bytes=len(push.pieces) * TOKEN_LAYER_BYTES,
                checksum=checksum(push.pieces),
            )
        )

    # --- receiving

    def _arrive(self, endpoint: Endpoint, push: Push) -> None:
        if endpoint.closed_by_receiver:
            return
        receiver, header = endpoint.receiver, push.action.header
        answer = receiver.accept(endpoint.sender.key, header, len(push.pieces) * TOKEN_LAYER_BYTES)
        if isinstance(answer, engine.Refusal):
            self.num_refused += 1
            self.world.log(receiver.key, "refuses", push.action.key, "grant", header.grant, answer)
            self._finish_push(endpoint, push, ok=True)
            return
        blocks = [(number, receiver.pool.blocks[number].generation) for number in answer.blocks]
        receive = Receive(push, answer.grant, blocks, answer.first_token)
        endpoint.receives.append(receive)
        if endpoint.broken:
            self._fail_receives(endpoint, lambda: None)
        elif not self.world.chance(self.stuck):
            self.world.after(self._write_time(), receiver.process, lambda: self._receive(endpoint, receive))

    def _write_time(self) -> float:
        return self.world.between(0.5, 2.5) if self.world.chance(0.05) else self.world.between(0.0005, 0.03)

    def _receive(self, endpoint: Endpoint, receive: Receive) -> None:
        """The data is here: needs both processes, so a stopped sender holds it up."""
        if receive.done or endpoint.broken:
            return
        if endpoint.sender.process.stopped:
            self._write(endpoint, receive, part=0.5)
            self.world.after(0.2, endpoint.receiver.process, lambda: self._receive(endpoint, receive))
            return
        pieces = self._write(endpoint, receive, part=1.0)
        self._receive_done(endpoint, receive, ok=True, pieces=pieces)
        self._finish_push(endpoint, receive.push, ok=True)

    def _write(self, endpoint: Endpoint, receive: Receive, part: float) -> Pieces:
        pool = endpoint.receiver.pool
        pieces = dict(receive.push.pieces)
        if self.bad_bytes and self.world.chance(self.bad_bytes):
            self.num_bad += 1
            spoiled = self.world.random.choice(list(pieces))
            pieces[spoiled] ^= 1
        for (group, position), state in list(pieces.items())[: int(len(pieces) * part)]:
            number, generation = receive.blocks[(position - receive.first_token) // BLOCK_TOKENS]
            block = pool.blocks[number]
            if block.generation != generation or block.state not in ("granted", "quarantined"):
                raise Violation(
                    f"{receive.push.action.key} grant {receive.grant}: a late write into block {number}, now {block.state}"
                )
            self.num_late_writes += block.state == "quarantined"
            block.content[group, position] = state
        return pieces

    def _receive_done(self, endpoint: Endpoint, receive: Receive, *, ok: bool, pieces: Pieces) -> None:
        receive.done = True
        endpoint.receives.remove(receive)
        endpoint.receiver.post(
            event.ReceiveDone(
                grant=receive.grant, ok=ok, bytes=len(pieces) * TOKEN_LAYER_BYTES, checksum=checksum(pieces)
            )
        )

    # --- the end of endpoints

    def close(self, closer: Worker, peer_key: Any, direction: Any) -> None:
        """By force; EndpointClosed comes when each callback has fired."""
        by_receiver = direction == engine.Direction.RECEIVE
        mine = [
            endpoint
            for endpoint in self.endpoints
            if not endpoint.broken
            and (endpoint.receiver if by_receiver else endpoint.sender) is closer
            and (endpoint.sender if by_receiver else endpoint.receiver).key == peer_key
        ]
        closed = lambda: closer.post(event.EndpointClosed(peer=peer_key, direction=direction))  # noqa: E731
        for endpoint in mine:
            endpoint.closed_by_receiver = by_receiver
            self.break_(endpoint, asked_by=closer)
        self.world.after(0.1, closer.process, closed)

    def break_(self, endpoint: Endpoint, asked_by: Worker | None = None) -> None:
        """Whoever didn't ask hears of it; what is under way fails, writes come until then."""
        if endpoint.broken:
            return
        endpoint.broken = True

        def sender_side() -> None:
            for push in list(endpoint.pushes):
                endpoint.pushes.remove(push)
                self._push_done(endpoint.sender, push, ok=False)
            if endpoint.sender is not asked_by:
                endpoint.sender.post(event.EndpointFailed(peer=endpoint.receiver.key, direction=engine.Direction.SEND))

        self.world.after(self.world.between(0.001, 0.05), endpoint.sender.process, sender_side)
        self._fail_receives(endpoint, lambda: None)

    def _fail_receives(self, endpoint: Endpoint, then: Callable[[], None]) -> None:
        def receiver_side() -> None:
            for receive in list(endpoint.receives):
                self._write(endpoint, receive, part=self.world.random.random())
                self._receive_done(endpoint, receive, ok=False, pieces={})
            then()

        self.world.after(self.world.between(0.002, 0.09), endpoint.receiver.process, receiver_side)

    def worker_died(self, worker: Worker) -> None:
        for endpoint in self.endpoints:
            if worker in (endpoint.sender, endpoint.receiver):
                self.break_(endpoint)
