"""`rtp-llm serve` as a process of its own, seen from outside: its URL, its processes, its sockets, its metrics."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml

from rtp_llm.app import serve_environment
from rtp_llm.config import HttpSettings

ROOT = Path(__file__).resolve().parents[2]
COMMAND = Path(__file__).parent / "bin" / "rtp-llm"  # as pip installs it: the working directory isn't on its path
APPLICATION = "demo"  # as the served model
START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 60


class Deployment:
    """Starts `rtp-llm serve --port 0` in a process group of its own; ready when the constructor returns."""

    def __init__(self, *flags: str, prefix: Sequence[str] = (), cwd: Path | None = None) -> None:
        command = [*prefix, sys.executable, str(COMMAND), "serve", "--port", "0", *flags]
        self._start(command, environment(), cwd, ready="curl ")

    def _start(self, command: Sequence[str], env: Mapping[str, str], cwd: Path | None, ready: str) -> None:
        """Until a line has `ready`."""
        self.lines: list[str] = []  # all that was printed so far
        self.start_lines: list[str] = []  # until it was ready
        self._ready = threading.Event()
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=env,
            cwd=cwd,
            preexec_fn=_stop_with_parent,
        )
        self._reader = threading.Thread(target=self._read, args=(ready,), daemon=True)
        self._reader.start()
        if not self._ready.wait(START_TIMEOUT_S) or not self.url:
            self.process.kill()
            raise AssertionError("not ready:\n" + "\n".join(self.lines))

    @property
    def url(self) -> str:
        return self._said(r"ready at (http://\S+?)/?\.?$")

    @property
    def ray_address(self) -> str:
        return self._said(r"Ray is at (\S+),")

    def _said(self, pattern: str) -> str:
        found = re.search(pattern, "\n".join(self.lines), re.M)
        return found.group(1) if found else ""

    def _read(self, ready: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if ready in line:
                self.start_lines = list(self.lines)
                self._ready.set()
        self._ready.set()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """The exit status after this signal."""
        self.process.send_signal(number)
        return self.exit_status()

    def exit_status(self) -> int:
        """Waits for the end; a failure says what was printed."""
        try:
            status = self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError("did not stop:\n" + "\n".join(self.lines)) from None
        self._reader.join()
        return status

    def processes(self) -> dict[int, str]:
        """Process id → title, of the whole tree."""
        return {pid: title(pid) for pid in descendants(self.process.pid)} | {self.process.pid: "rtp-llm serve"}

    def replicas(self, name: str, application: str = APPLICATION) -> list[int]:
        """Process ids of the replicas of this deployment."""
        start = f"ray::ServeReplica:{application}:{name}"
        return [pid for pid, text in self.processes().items() if text.startswith(start)]

    def replica(self, name: str) -> int:
        """Process id of its one replica."""
        [pid] = self.replicas(name)
        return pid

    def metrics(self) -> Metrics:
        return Metrics(httpx.get(f"{self.url}/metrics").text)

    def is_healthy(self) -> bool:
        return httpx.get(f"{self.url}/health").status_code == 200

    def models(self) -> list[str]:
        return [model["id"] for model in httpx.get(f"{self.url}/v1/models").json()["data"]]

    def wait_workers(self, count: int) -> None:
        response = httpx.get(f"{self.url}/health", params={"wait_s": 60, "workers": count}, timeout=70)
        assert response.status_code == 200, response.text


class FileDeployment(Deployment):
    """deploy/ray's file for Serve on a Ray of its own, started as docs/deployment.md says: the variables of environment.sh
    first. Only the ports and the place of HAProxy's files are others, so that two may stand on one host."""

    def __init__(
        self,
        file: str,
        state: Path,
        edit: Callable[[dict[str, Any]], None] = lambda declared: None,
        path: str = "",
        env: Mapping[str, str] | None = None,
    ) -> None:
        """`edit(declared)` changes what is deployed; `path`: where its first application answers; `env`: Ray's, in addition."""
        self._path = path
        declared = yaml.safe_load((ROOT / "deploy" / "ray" / file).read_text())
        self._port = declared["http_options"]["port"] = _free_port()
        edit(declared)
        written = state / file
        written.write_text(yaml.safe_dump(declared))
        places = {
            name: value
            for name, value in serve_environment(HttpSettings(), state).items()
            if re.fullmatch(r"RAY_SERVE_\w+_(LOC|PATH|BASE|FILE|PORT)", name) and "BINARY" not in name
        }
        script = f"source deploy/ray/environment.sh && exec serve run --address local {written}"
        binaries = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        variables = environment() | places | {"PATH": binaries} | dict(env or {})
        self._start(["bash", "-euc", script], variables, ROOT, ready="Submitted deploy config")
        wait_for(self._answers, timeout_s=START_TIMEOUT_S)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}{self._path}"

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/health").status_code == 200
        return False


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _stop_with_parent() -> None:
    """Tests that are killed leave no deployment behind."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


class Metrics:
    """Samples of Prometheus' text; a worker's have the labels pool and worker, a router's counts of a pool only the first."""

    def __init__(self, text: str) -> None:
        self._samples = [
            (name, dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value))
            for name, labels, value in re.findall(r"^(\w+)(?:\{(.*)\})? (\S+)$", text, re.M)
        ]

    def total(self, name: str, **labels: str) -> float:
        """Sum of the samples of that name that have these labels."""
        return sum(v for n, found, v in self._samples if n == name and found.items() >= labels.items())

    def workers(self, pool: str) -> set[str]:
        return {found["worker"] for _, found, _ in self._samples if found.get("pool") == pool and "worker" in found}


def environment() -> dict[str, str]:
    """A child's: the source tree on its path, no cluster to join."""
    ours = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return ours | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}


def descendants(ancestor: int) -> list[int]:
    """Process ids, without zombies."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(stat.parent.name))
    found = list(children.get(ancestor, []))
    for each in found:
        found += children.get(each, [])
    return found


def title(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return ""


def alive(pids: dict[int, str]) -> dict[int, str]:
    """Those that still run under the same title, zombies aside."""
    return {pid: text for pid, text in pids.items() if title(pid) and title(pid).split()[0] == text.split()[0]}


def listening(pids: set[int]) -> Iterator[tuple[int, str]]:
    """(process id, local address) of every TCP socket of these processes that listens."""
    sockets = {}
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                if found := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(link)):
                    sockets[found.group(1)] = pid
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for row in Path(table).read_text().splitlines()[1:]:
            fields = row.split()
            if fields[3] == "0A" and fields[9] in sockets:
                yield sockets[fields[9]], fields[1]


def wait_for(condition: object, timeout_s: float = 30) -> None:
    """Until `condition()` holds: for what can only be seen from outside."""
    deadline = time.monotonic() + timeout_s
    assert callable(condition)
    while not condition():
        assert time.monotonic() < deadline, "still not so"
        time.sleep(0.05)
