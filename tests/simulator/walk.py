"""One walk: a scenario drawn from a seed, its faults, and what must hold at the end of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from rtp_llm.wire.key import WorkerKey
from tests.simulator.data_plane import DataPlane
from tests.simulator.network import Faults, Session
from tests.simulator.router import Router
from tests.simulator.worker import Worker
from tests.simulator.world import Process, Violation, World, note

Fault: TypeAlias = "Callable[[Cluster, Worker | None], None]"  # strikes this worker, or any

TROUBLE_S = 8.0  # faults come within
PATIENCE_S = 120.0  # then every request has its end
REST_S = 20.0  # then every counter reads zero: longer than a router's expiry and a lease


class Cluster:
    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.world = World(seed, trace=trace)
        self.faults = Faults()
        self.data_plane = DataPlane(self.world)
        self.workers: list[Worker] = []
        self.routers: list[Router] = []
        self.sessions: list[Session] = []
        self.joins: dict[tuple[Any, ...], list[tuple[int, Worker]]] = {}  # answer -> (attempt, where)
        self.counted: Counter[str] = Counter()
        self.stories: list[Story] = []
        draw = self.world.random
        self.pool_size = draw.choice([9, 12, 16, 40])
        self.num_slots = draw.choice([1, 2, 4, 64])
        self.max_queued_tokens = draw.choice([20, 60, 1000])
        self.preemption = draw.choice([0.0, 0.0, 0.05])
        if draw.random() < 0.5:
            self.faults.late = draw.choice([0.0, 0.02, 0.1])
            self.faults.doubled = draw.choice([0.0, 0.02, 0.2])
            self.data_plane.bad_bytes = draw.choice([0.0, 0.0, 0.02, 0.2])
            self.data_plane.stuck = draw.choice([0.0, 0.0, 0.02, 0.1])
        for index in range(draw.choice([1, 2, 2, 3, 4])):
            self.start_worker(f"w{index}")
        for index in range(draw.choice([1, 1, 2])):
            self.routers.append(Router(self, 1000 + index))

    # --- members

    def start_worker(self, name: str) -> None:
        epoch = len(self.workers) + 1
        worker = Worker(self, name, epoch, self.pool_size, self.num_slots, self.max_queued_tokens)
        worker.engine.steps_with_preemption_chance = self.preemption
        self.workers.append(worker)

    def worker(self, key: Any) -> Worker | None:
        return next((worker for worker in self.workers if worker.key == key), None)

    def living(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.process.alive]

    def unreachable(self, caller: Process, called: Process) -> bool:
        return called.stopped or self.world.now < self.faults.cut_until(caller, called)

    def kill(self, worker: Worker) -> None:
        self.world.log(f"*** {worker.key} is killed")
        self._end(worker)

    def left(self, worker: Worker) -> None:
        self.world.log(f"*** {worker.key} has drained and leaves")
        worker.check_at_rest()
        self.counted["drained"] += 1
        self._end(worker)

    def _end(self, worker: Worker) -> None:
        worker.process.alive = False
        for session in self.sessions:
            if worker in session.ends:
                session.break_()
        self.data_plane.worker_died(worker)
        self.counted["preemptions"] += worker.engine.preemptions
        self.world.after(self.world.between(0.2, 2.0), None, lambda: self.start_worker(worker.key.id))

    def kill_router(self, router: Router) -> None:
        self.world.log(f"*** router {router.epoch} is killed")
        router.process.alive = False
        for session in self.sessions:
            if router in session.ends:
                session.break_()

    def did(self, worker: Worker, what: str) -> None:
        self.counted[f"did: {what}"] += 1
        for story in self.stories:
            story.noticed(self, worker, what)

    # --- what must hold

    def joined(self, worker: Worker, key: Any) -> None:
        """Of an answer only one attempt runs committed, as far as its router can know."""
        joins = self.joins.setdefault((key.router_epoch, key.request, key.choice), [])
        router = next(router for router in self.routers if router.epoch == key.router_epoch)
        for attempt, where in joins:
            if attempt == key.attempt:
                raise Violation(f"{key} is committed twice: on {where.key} and {worker.key}")
            runs = where.process.alive and any(each.key.attempt == attempt for each in self._sequences(where, key))
            lost = WorkerKey(where.key.id, where.key.epoch) in router.ever_lost
            if runs and not lost and router.process.alive:
                raise Violation(f"{key} is committed while attempt {attempt} runs on {where.key}")
        given_up = router.given_up(key.request, key.attempt)
        asked = WorkerKey(worker.key.id, worker.key.epoch) not in router.ever_lost
        if router.process.alive and given_up and asked:
            raise Violation(
                f"{key} is committed on {worker.key}, which its router could have asked before it gave it up"
            )
        joins.append((key.attempt, worker))
        self.counted["joined"] += 1

    @staticmethod
    def _sequences(worker: Worker, key: Any) -> list[Any]:
        sequences = [*worker.engine.running, *worker.engine.waiting]
        return [
            each
            for each in sequences
            if not each.cancelled
            and (each.key.router_epoch, each.key.request, each.key.choice)
            == (key.router_epoch, key.request, key.choice)
        ]

    def check_clients(self) -> None:
        for router in self.routers:
            if not router.process.alive:
                continue
            for request, machine in router.machines.items():
                client = router.clients[request]
                if not client.outcome:
                    raise Violation(
                        f"router {router.epoch}, request {request} has no end: {machine.state}, {machine.key}, "
                        f"S {machine.sender}, R {machine.receiver}, {client.received} of {len(client.expected)}"
                    )
                self.counted[client.outcome] += 1
            self.counted.update({f"placed: {cause}": count for cause, count in router.causes.items()})

    def check_rest(self) -> None:
        for worker in self.living():
            worker.check_at_rest()
            self.counted["preemptions"] += worker.engine.preemptions

    def quiet(self) -> bool:
        return all(router.all_done() for router in self.routers if router.process.alive)

    def at_rest(self) -> bool:
        return self.quiet() and all(worker.at_rest() for worker in self.living())


def draw_requests(cluster: Cluster) -> None:
    world, draw = cluster.world, cluster.world.random
    most = (cluster.pool_size - 2) * 4
    for _ in range(draw.randint(2, 8)):
        shared = [1] * draw.choice([0, 0, 4, 9])
        length = draw.randint(1, min(26, most - 2))
        prompt = (shared + [draw.randrange(50) for _ in range(30)])[:length]
        max_tokens = draw.randint(1, min(24, most - length))
        router = draw.choice(cluster.routers)
        leaves = world.between(0.0, 1.0) if world.chance(0.1) else None

        def ask(
            router: Router = router,
            prompt: list[int] = prompt,
            max_tokens: int = max_tokens,
            leaves: float | None = leaves,
        ) -> None:
            request = router.ask(prompt, max_tokens)
            if leaves is not None:
                world.after(leaves, router.process, lambda: router.leave(request))

        world.after(world.between(0.05, TROUBLE_S * 0.6), router.process, ask)


@dataclass
class Story:
    """Faults, each a while after the one before, that begin when something is done or said for the nth time; they strike who
    did it, whom it concerns, or anybody."""

    what: str
    nth: int
    faults: list[tuple[float, Fault]]

    def noticed(self, cluster: Cluster, worker: Worker, what: str) -> None:
        if what != self.what or self.nth == 0:
            return
        self.nth -= 1
        if self.nth > 0:
            return
        delay = 0.0
        for pause, fault in self.faults:
            delay += pause
            others = [other for other in cluster.living() if other is not worker]
            victim = cluster.world.random.choice([worker, *others])
            cluster.world.after(delay, None, lambda fault=fault, victim=victim: fault(cluster, victim))


def draw_faults(cluster: Cluster) -> None:
    """Some at any time, some at a moment of the protocol."""
    world, draw = cluster.world, cluster.world.random
    for _ in range(draw.choice([0, 0, 0, 1, 2, 4])):
        fault = draw.choice(FAULTS)
        world.after(world.between(0.1, TROUBLE_S), None, lambda fault=fault: fault(cluster, None))
    for _ in range(draw.choice([0, 1, 1, 2, 3])):
        pause = draw.choice([0.0, 0.02, 0.2, 1.0, 3.0])
        faults = [(world.between(0.0, pause), draw.choice(FAULTS)) for _ in range(draw.choice([1, 1, 2, 3]))]
        cluster.stories.append(Story(draw.choice(MOMENTS), draw.randint(1, 3), faults))


def some_worker(cluster: Cluster, worker: Worker | None) -> Worker | None:
    if worker is not None:
        return worker if worker.process.alive else None
    return cluster.world.random.choice(cluster.living()) if cluster.living() else None


def crash_worker(cluster: Cluster, worker: Worker | None) -> None:
    if (victim := some_worker(cluster, worker)) is not None:
        cluster.counted["crashes"] += 1
        cluster.kill(victim)


def stop(cluster: Cluster, process: Process) -> None:
    if process.stopped or not process.alive:
        return
    cluster.counted["stops"] += 1
    duration = cluster.world.random.choice([0.3, 1.5, 3.0, 6.0, 11.0])
    cluster.world.log(f"*** {process.name} is stopped for {duration} s")
    process.stopped = True

    def go_on() -> None:
        cluster.world.log(f"*** {process.name} goes on")
        process.go_on()

    cluster.world.after(duration, None, go_on)


def stop_worker(cluster: Cluster, worker: Worker | None) -> None:
    if (victim := some_worker(cluster, worker)) is not None:
        stop(cluster, victim.process)


def stop_router(cluster: Cluster, worker: Worker | None) -> None:
    stop(cluster, cluster.world.random.choice(cluster.routers).process)


def crash_router(cluster: Cluster, worker: Worker | None) -> None:
    cluster.counted["router crashes"] += 1
    cluster.kill_router(cluster.world.random.choice(cluster.routers))


def break_sessions(cluster: Cluster, worker: Worker | None) -> None:
    cluster.counted["broken sessions"] += 1
    sessions = [each for each in cluster.sessions if not each.broken and (worker is None or worker in each.ends)]
    for session in cluster.world.random.sample(sessions, min(len(sessions), cluster.world.random.choice([1, 1, 2, 4]))):
        cluster.world.log(f"*** a session breaks: {[end.process.name for end in session.ends]}")
        session.break_()


def cut_network(cluster: Cluster, worker: Worker | None) -> None:
    """Between a worker and a router or another worker."""
    victim = some_worker(cluster, worker)
    if victim is None:
        return
    cluster.counted["cuts"] += 1
    others = [router.process for router in cluster.routers] * 2
    others += [other.process for other in cluster.living() if other is not victim]
    other = cluster.world.random.choice(others)
    duration = cluster.world.random.choice([0.5, 2.0, 3.5, 3.5, 12.0])
    cluster.world.log(f"*** nothing passes between {victim.key} and {other.name} for {duration} s")
    cluster.faults.cut(victim.process, other, cluster.world.now + duration)


def break_endpoints(cluster: Cluster, worker: Worker | None) -> None:
    cluster.counted["broken endpoints"] += 1
    for endpoint in cluster.data_plane.endpoints:
        if not endpoint.broken and cluster.world.chance(0.7):
            cluster.world.log(f"*** the endpoint {endpoint.sender.key} -> {endpoint.receiver.key} breaks")
            cluster.data_plane.break_(endpoint)


def drain_worker(cluster: Cluster, worker: Worker | None) -> None:
    victim = some_worker(cluster, worker)
    if victim is not None and not victim.draining and not victim.process.stopped:
        cluster.world.log(f"*** {victim.key} drains")
        victim.drain()


FAULTS: list[Fault] = [
    crash_worker,
    crash_worker,
    stop_worker,
    stop_worker,
    stop_router,
    crash_router,
    break_sessions,
    break_sessions,
    break_sessions,
    cut_network,
    cut_network,
    break_endpoints,
    drain_worker,
]
# What a worker does or says, or a router says to it, by the name of the action or the message.
MOMENTS = [
    "Submit",
    "Fence",
    "Fence",
    "Cancel",
    "Attach",
    "EnqueueSequence",
    "Reserve",
    "Granted",
    "PushLayers",
    "PushLayers",
    "Outputs",
    "Commit",
    "Commit",
    "PeerCommitted",
    "Committed",
    "JoinSequence",
    "Released",
    "NoRoom",
    "Expired",
    "BadChecksum",
    "Fenced",
    "PeerFenced",
    "CloseEndpoint",
    "CancelSequence",
]


def walk(seed: int, *, trace: bool = False) -> Counter[str]:
    """What happened, counted. Raises Violation (with `.trace`, if asked) when something must not."""
    cluster = Cluster(seed, trace=trace)
    world = cluster.world
    begin = world.now
    draw_requests(cluster)
    draw_faults(cluster)
    try:
        world.run(begin + TROUBLE_S, done=lambda: False)
        world.run(begin + TROUBLE_S + PATIENCE_S, done=cluster.quiet)
        cluster.check_clients()
        world.run(world.now + REST_S, done=cluster.at_rest)
        cluster.check_rest()
    except Exception as error:
        if world.trace is not None:
            note(error, "\n".join(world.trace))
        raise
    cluster.counted["events"] = world.num_events
    cluster.counted["refused messages"] += cluster.data_plane.num_refused
    cluster.counted["bad messages"] += cluster.data_plane.num_bad
    cluster.counted["late writes"] += cluster.data_plane.num_late_writes
    return cluster.counted
