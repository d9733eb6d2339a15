"""A router process: the real request machines, placement by lot, clients that check every token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rtp_llm.request import FinishReason, TokenOutput
from rtp_llm.router import request_machine as rm
from rtp_llm.wire.key import RequestKey, WorkerKey
from tests.simulator.engine import answer_of
from tests.simulator.native import engine, message
from tests.simulator.network import LOST_AFTER_S, Session
from tests.simulator.worker import Draining, Hello
from tests.simulator.world import Process, Violation

if TYPE_CHECKING:
    from tests.simulator.walk import Cluster


def native_key(key: RequestKey) -> Any:
    return engine.RequestKey(key.router_epoch, key.request, key.choice, key.attempt)


def native_worker(key: WorkerKey) -> Any:
    return engine.WorkerKey(key.id, key.epoch)


@dataclass
class Client:
    """Who asked, what is owed and what came."""

    prompt: list[int]
    max_tokens: int
    expected: list[tuple[int, int]]
    received: int = 0
    outcome: str = ""  # "", "whole", "failed", "left"


class WorkerLink:
    def __init__(self, heard: float) -> None:
        self.session: Session | None = None
        self.ready = False  # the worker's hello has come on this session
        self.heard = heard
        self.draining = False


class Router:
    def __init__(self, cluster: Cluster, epoch: int) -> None:
        self.cluster, self.world = cluster, cluster.world
        self.epoch = epoch
        self.process = Process(f"router {epoch}")
        self.machines: dict[int, rm.RequestMachine] = {}
        self.clients: dict[int, Client] = {}
        self.links: dict[WorkerKey, WorkerLink] = {}
        self.ever_lost: set[WorkerKey] = set()
        self.causes: dict[str, int] = {}
        self._look_for_workers()

    # --- requests

    def ask(self, prompt: list[int], max_tokens: int) -> int:
        request = len(self.machines)
        self.clients[request] = Client(prompt, max_tokens, answer_of(prompt, max_tokens))
        machine = rm.RequestMachine(RequestKey(self.epoch, request, 0, 0))
        self.machines[request] = machine
        self._perform(request, machine.start())
        return request

    def leave(self, request: int) -> None:
        client = self.clients[request]
        if not client.outcome:
            client.outcome = "left"
            self._tell(request, rm.Ended())

    def given_up(self, request: int, attempt: int) -> bool:
        """Whether it goes on with a later attempt."""
        machine = self.machines[request]
        return machine.state is not rm.State.DONE and attempt < machine.key.attempt

    def all_done(self) -> bool:
        return all(machine.state is rm.State.DONE for machine in self.machines.values())

    def _tell(self, request: int, happened: rm.Event) -> None:
        machine = self.machines[request]
        before = machine.state
        actions = machine.handle(happened)
        self.world.log(self.process.name, before.name, "->", machine.state.name, happened, actions)
        self._perform(request, actions)

    def _perform(self, request: int, actions: list[rm.Action]) -> None:
        for wanted in actions:
            if isinstance(wanted, rm.Submit):
                self._submit(request, wanted)
            elif isinstance(wanted, rm.Cancel):
                self._send(wanted.worker, message.Cancel(key=native_key(wanted.key)))
            elif isinstance(wanted, rm.Fence):
                self._send(wanted.worker, message.Fence(key=native_key(wanted.key)))
            elif isinstance(wanted, rm.Place):
                self.causes[wanted.cause] = self.causes.get(wanted.cause, 0) + 1
                delay = self.world.between(0.02, 0.2) if wanted.cause == "busy" else 0.001
                self.world.after(delay, self.process, lambda: self._place(request))
            elif isinstance(wanted, rm.Emit):
                self._emitted(request, wanted.output)
            elif isinstance(wanted, rm.Finish):
                client = self.clients[request]
                if not client.outcome:
                    if client.received != len(client.expected):
                        raise Violation(f"request {request} ended after {client.received} of {len(client.expected)}")
                    client.outcome = "whole"
            elif isinstance(wanted, rm.Fail):
                if self.machines[request].losses < 3:
                    raise Violation(f"request {request} failed without three losses: {wanted.error}")
                self.clients[request].outcome = "failed"

    def _emitted(self, request: int, output: TokenOutput) -> None:
        client = self.clients[request]
        if output.position != client.received:
            raise Violation(f"request {request}: position {output.position} follows {client.received - 1}")
        expected = client.expected[output.position]
        if (output.token, int(output.finish_reason)) != expected:
            raise Violation(f"request {request}: token {output} at {output.position}, expected {expected}")
        client.received += 1

    def _place(self, request: int) -> None:
        machine = self.machines[request]
        if machine.state is not rm.State.WAIT:
            return
        ready = [
            key for key, link in self.links.items() if link.session is not None and link.ready and not link.draining
        ]
        if not ready:
            self.world.after(0.1, self.process, lambda: self._place(request))
            return
        preferred = [key for key in machine.prefer if key in ready]
        draw = self.world.random
        sender = preferred[0] if preferred and self.world.chance(0.8) else draw.choice(ready)
        others = [key for key in ready if key != sender]
        if machine.must_run_alone or not others or self.world.chance(0.1):
            self._tell(request, rm.Planned(sender))
        else:
            self._tell(request, rm.Planned(sender, draw.choice(others)))

    def _submit(self, request: int, wanted: rm.Submit) -> None:
        client = self.clients[request]
        spec = engine.SequenceSpec(
            key=native_key(wanted.key),
            prompt=client.prompt,
            output=list(wanted.output),
            sampling=engine.SamplingParams(max_tokens=client.max_tokens),
            solo=wanted.solo,
        )
        receiver = native_worker(wanted.receiver) if wanted.receiver is not None else None
        self._send(wanted.worker, message.Submit(spec=spec, receiver=receiver, receiver_address="there"))

    # --- sessions

    def _send(self, worker: WorkerKey, body: Any) -> None:
        link = self.links.get(worker)
        if link is not None and link.session is not None:
            link.session.send(self, body)
        if (known := self.cluster.worker(native_worker(worker))) is not None:
            self.cluster.did(known, type(body).__name__)

    def _look_for_workers(self) -> None:
        for worker in self.cluster.workers:
            key = WorkerKey(worker.key.id, worker.key.epoch)
            if key not in self.links and worker.process.alive and not worker.process.stopped:
                self.links[key] = WorkerLink(self.world.now)
                self._connect(key)
        self.world.after(0.5, self.process, self._look_for_workers)

    def _connect(self, key: WorkerKey) -> None:
        link = self.links.get(key)
        if link is None or link.session is not None:
            return
        worker = self.cluster.worker(native_worker(key))
        if worker is None or not worker.process.alive or self.world.now - link.heard >= LOST_AFTER_S:
            self._lost(key)
        elif self.cluster.unreachable(self.process, worker.process):
            self.world.after(0.2, self.process, lambda: self._connect(key))
        else:
            link.session = Session(self.world, self.cluster.faults, self, worker)
            self.cluster.sessions.append(link.session)
            link.session.send(self, Hello(self.epoch))

    def _attach(self, key: WorkerKey, session: Session) -> None:
        """What is live once the worker knows the session: what it said before is lost and repeated, what it says from now on
        arrives. An Attach written earlier would miss what was placed in between."""
        entries = [entry for machine in self.machines.values() if (entry := machine.attach_entry(key)) is not None]
        listed = [
            message.AttachEntry(key=native_key(entry.key), next_position=entry.next_position, role=int(entry.role))
            for entry in entries
        ]
        session.send(self, message.Attach(entries=listed))
        for entry in entries:
            self._tell(entry.key.request, rm.Resumed(key))

    def on_break(self, session: Session) -> None:
        for key, link in self.links.items():
            if link.session is session:
                link.session, link.ready, link.heard = None, False, session.heard[0]
                self.world.after(self.world.between(0.05, 0.6), self.process, lambda key=key: self._connect(key))

    def on_silence(self, session: Session) -> None:
        for key, link in list(self.links.items()):
            if link.session is session:
                self._lost(key)

    def _lost(self, key: WorkerKey) -> None:
        del self.links[key]
        self.ever_lost.add(key)
        for request, machine in self.machines.items():
            if machine.state is not rm.State.DONE:
                self._tell(request, rm.Lost(key))

    def on_message(self, session: Session, body: Any) -> None:
        key = next((key for key, link in self.links.items() if link.session is session), None)
        if key is None:
            return
        if isinstance(body, Hello):
            if not self.links[key].ready:
                self.links[key].ready = True
                self._attach(key, session)
            return
        if isinstance(body, Draining):
            self.links[key].draining = True
            session.send(self, message.DrainingAcknowledged())
            return
        spoken = RequestKey(body.key.router_epoch, body.key.request, body.key.choice, body.key.attempt)
        if isinstance(body, message.Outputs):
            for token in body.tokens:
                output = TokenOutput(token.position, token.token, finish_reason=FinishReason(token.finish))
                self._tell(spoken.request, rm.Output(spoken, key, output))
            return
        events: dict[str, type] = {
            "Busy": rm.Busy,
            "Released": rm.Released,
            "Committed": rm.Committed,
            "Fenced": rm.Fenced,
        }
        self._tell(spoken.request, events[type(body).__name__](spoken, key))
