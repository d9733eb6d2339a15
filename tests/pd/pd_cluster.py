"""A router's part and the sessions' part for plain worker processes (pd_worker.py): spawns, relays, collects tokens."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

ROUTER_EPOCH = 77
WORKER = Path(__file__).with_name("pd_worker.py")


class WorkerProcess:
    def __init__(self, name: str, **settings: Any) -> None:
        ours, theirs = socket.socketpair()
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), str(theirs.fileno()), json.dumps({"id": name, **settings})],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self.pipe = Connection(ours.detach())
        self.key: Any = None

    def say(self, *what: Any) -> None:
        self.pipe.send(what)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def key(request: int, choice: int = 0, attempt: int = 0) -> dict[str, Any]:
    return {"@": "RequestKey", "router_epoch": ROUTER_EPOCH, "request": request, "choice": choice, "attempt": attempt}


def spec(request: int, prompt: list[int], **sampling: Any) -> dict[str, Any]:
    params = {"@": "SamplingParams", "logprobs": 2, **sampling}
    return {"@": "SequenceSpec", "key": key(request), "prompt": prompt, "sampling": params}


@dataclass
class Answer:
    """Tokens by position; each must come with the same bits from whoever says it."""

    rows: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    said_at: list[tuple[float, int]] = field(default_factory=list)

    def add(self, position: int, token: int, logprob: float, finish: int, top: Any) -> None:
        row = (token, float(logprob).hex(), int(finish), tuple((t, float(p).hex()) for t, p in top))
        assert self.rows.setdefault(position, row) == row
        self.said_at.append((time.monotonic(), position))

    @property
    def finished(self) -> bool:
        return (
            bool(self.rows)
            and any(row[2] for row in self.rows.values())
            and set(self.rows) == set(range(max(self.rows) + 1))
        )

    def tokens(self) -> list[tuple[Any, ...]]:
        return [self.rows[position] for position in range(len(self.rows))]


class Cluster:
    def __init__(self, mode: str, names: list[str], **settings: Any) -> None:
        self.workers = {name: WorkerProcess(name, mode=mode, **settings) for name in names}
        self.answers: dict[int, Answer] = {}
        self.replies: dict[tuple[str, str], Any] = {}
        self.warnings: list[str] = []
        for worker in self.workers.values():
            self.run_until(lambda name=worker.name: (name, "ready") in self.replies, 60)
            worker.key = self.replies[worker.name, "ready"][0]
            worker.say("router_connected", ROUTER_EPOCH)

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self.workers.values():
            if worker.process.poll() is None:
                os.kill(worker.process.pid, signal.SIGCONT)
                worker.say("stop")
        for worker in self.workers.values():
            try:
                worker.process.wait(20)
            finally:
                worker.kill()

    def submit(self, sender: str, receiver: str | None, request: dict[str, Any]) -> Answer:
        body = {"@": "message.Submit", "spec": request, "receiver": None, "receiver_address": ""}
        if receiver:
            body |= {"receiver": self.workers[receiver].key, "receiver_address": receiver}
        else:
            del body["receiver"]
        self.workers[sender].say("from_router", ROUTER_EPOCH, body)
        answer = self.answers[request["key"]["request"]] = Answer()
        return answer

    def cancel(self, number: int) -> None:
        for worker in self.workers.values():
            worker.say("from_router", ROUTER_EPOCH, {"@": "message.Cancel", "key": key(number)})

    def settled(self) -> bool:
        """Each request is finished or was given up by its sender."""
        return all(a.finished or {"Released", "Fenced"} & set(a.notices) for a in self.answers.values())

    def retry_alone(self, worker: str, requests: list[dict[str, Any]]) -> None:
        """What the router does after a loss: the next attempt, with the tokens so far, here without a receiver."""
        answers = dict(self.answers)
        for request in requests:
            number = request["key"]["request"]
            if answers[number].finished:
                continue
            so_far = [row[0] for row in answers[number].tokens()]
            self.submit(worker, None, request | {"key": key(number, attempt=1), "output": so_far})
            self.answers[number] = answers[number]
        self.run_until(lambda: all(a.finished for a in answers.values()), 60)

    def ask(self, name: str, verb: str, reply: str | None = None) -> Any:
        reply = reply or verb
        self.replies.pop((name, reply), None)
        self.workers[name].say(verb)
        self.run_until(lambda: (name, reply) in self.replies, 20)
        return self.replies[name, reply][0]

    def wait_idle(self) -> None:
        end = time.monotonic() + 120  # what still computes may be slow, what hangs is never idle
        for name in self.workers:
            while busy := self.ask(name, "check_idle", "idle"):
                assert time.monotonic() < end, f"{name}: {busy}"
                self.run_until(lambda: False, 0.1, must=False)

    def run_until(self, done: Any, timeout_s: float, *, must: bool = True) -> None:
        end = time.monotonic() + timeout_s
        while not done():
            left = end - time.monotonic()
            if left <= 0:
                assert not must, f"nothing after {timeout_s} s; warnings {self.warnings}"
                return
            pipes = {w.pipe: w for w in self.workers.values() if not w.pipe.closed}
            for pipe in wait(list(pipes), left):
                try:
                    what = pipe.recv()
                except (EOFError, ConnectionError):
                    pipe.close()
                    continue
                self.hear(pipes[pipe], *what)

    def hear(self, worker: WorkerProcess, verb: str, *rest: Any) -> None:
        if verb == "outputs":
            for request, *row in rest[0]:
                self.answers[request["request"]].add(*row)
        elif verb == "to_router":
            self.hear_machine(rest[0])
        elif verb == "to_peer":
            self.relay(rest[0], "from_peer", worker.key, *rest[1:])
        elif verb in ("hello", "offer"):
            self.relay(rest[0], verb, worker.key, *rest[1:])
        elif verb == "warning":
            self.warnings.append(f"{worker.name}: {rest[0]}")
        elif verb == "fault":
            raise AssertionError(f"{worker.name}: {rest[0]}")
        else:
            self.replies[worker.name, verb] = rest

    def hear_machine(self, body: dict[str, Any]) -> None:
        kind = body["@"].removeprefix("message.")
        answer = self.answers[body["key"]["request"]]
        if kind == "Outputs":
            for t in body["tokens"]:
                answer.add(t["position"], t["token"], t["logprob"], t["finish"], t["top_logprobs"])
        else:
            answer.notices.append(kind)

    def relay(self, to: dict[str, Any], *what: Any) -> None:
        """As a session would: what is said to a worker that died meanwhile is lost."""
        for worker in self.workers.values():
            if worker.key == to and not worker.pipe.closed:
                with contextlib.suppress(ConnectionError):  # its pipe isn't seen closed yet
                    worker.say(*what)
