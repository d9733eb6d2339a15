"""Site: machines on one network, made of this machine's namespaces.

    10.0.0.254 admin ──┬── 10.0.0.1 head      each with its own network, processes, /tmp, /run, /dev/shm, home and sshd;
                       └── 10.0.0.2 worker    the file system else is this machine's

All of it hangs on one process, the admin's first, which ends when its stdin does: so nothing is left when a test's process
ends, however that happens. Nothing is written to this machine's disk. Needs root.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.serve.deployment import ROOT, descendants, title

TOOLS = ("ip", "nsenter", "unshare", "ssh", "ssh-keygen", "/usr/sbin/sshd", "rsync", "curl")
NAMESPACES = ("--net", "--mount", "--uts", "--ipc", "--pid", "--mount-proc", "--fork", "--kill-child")
MACHINE = Path(__file__).parent / "machine.sh"
IMAGE = Path(__file__).parent / "machine_image.py"
KEPT = sorted({str(ROOT), sys.prefix, sys.base_prefix, sysconfig.get_path("purelib")})
ADMIN_ADDRESS = "10.0.0.254"
CLONE_NEWNET = 0x40000000


class Machine:
    """One machine. `pid` is its first process, as this machine counts."""

    def __init__(self, prefix: Sequence[str], role: str, name: str, depth: int, env: dict[str, str]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [*prefix, "unshare", *NAMESPACES, "bash", str(MACHINE), role, name, *KEPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **env},
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise AssertionError(f"{name} didn't start, exit status {self._process.wait()}")
        [self.pid] = [pid for pid in descendants(self._process.pid) if _is_first(pid, depth)]

    def run(self, command: str, timeout_s: float = 120, cwd: str = "/root") -> str:
        """What `bash -c` prints there, stderr too; a status that isn't 0 is an AssertionError with it."""
        enter = ["nsenter", "--target", str(self.pid), "--net", "--mount", "--uts", "--ipc", "--pid"]
        try:
            run = subprocess.run(
                [*enter, "env", f"--chdir={cwd}", "bash", "-c", command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=timeout_s,
                env={"HOME": "/root", "PATH": f"{sys.prefix}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
            )
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"{self.name}: {command}: not over after {timeout_s:g} s: {error.output!r}") from None
        assert run.returncode == 0, f"{self.name}: {command}: exit status {run.returncode}\n{run.stdout}"
        return run.stdout

    def processes(self) -> dict[int, str]:
        """Process id → title, less its first process."""
        return {pid: text for pid in descendants(self.pid) if (text := title(pid))}

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """Every process at once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait()


class Host(Machine):
    """A machine with an address, an sshd, and what the package needs. One that was killed is started again with its home as it
    was."""

    def __init__(self, site: Site, name: str, address: str) -> None:
        self.address = address
        self._site = site
        inside = ["nsenter", "--target", str(site.admin.pid), "--net", "--mount", "--uts", "--ipc", "--pid"]
        super().__init__(inside, "host", name, depth=3, env={"AUTHORIZED_KEY": site.key})
        self._link = f"to-{name}"
        site.ip(f"link add {self._link} type veth peer name eth0 netns {self.pid}")
        self.ip(f"address add {address}/24 dev eth0")
        self.ip("link set eth0 up")
        self.ip(f"route add default via {ADMIN_ADDRESS}")  # Ray asks which of its addresses leads outside
        self.join()
        self.run(f"[ -e rtp_llm ] || {sys.executable} {IMAGE}")

    def ip(self, arguments: str) -> None:
        _ip(self.pid, arguments)

    def kill(self) -> None:
        """As if its power were cut: nobody hears of it."""
        self.cut()
        super().kill()
        self._site.ip(f"link delete {self._link}")  # the kernel does it some time later

    def cut(self) -> None:
        """Whatever is sent to it, or by it, is lost in silence."""
        self._site.ip(f"link set {self._link} nomaster")

    def join(self) -> None:
        self._site.ip(f"link set {self._link} master bridge up")


class Site:
    """Made by `running`."""

    def __init__(self) -> None:
        self.admin = Machine([], "admin", "admin", depth=2, env={})
        self.key = self.admin.run("cat /root/.ssh/id_ed25519.pub").strip()
        self.hosts: list[Host] = []

    @classmethod
    @contextlib.contextmanager
    def running(cls) -> Iterator[Site]:
        site = cls()
        try:
            yield site
        finally:
            site.admin.close()

    def start_host(self, name: str, address: str) -> Host:
        host = Host(self, name, address)
        self.hosts.append(host)
        return host

    def ip(self, arguments: str) -> None:
        _ip(self.admin.pid, arguments)

    def pids(self) -> list[int]:
        """Of every process on it."""
        first = [self.admin.pid, *(host.pid for host in self.hosts)]
        return first + [pid for each in first for pid in descendants(each)]

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """In the block, sockets that this thread makes, and its new threads and processes, are the admin's."""
        with open("/proc/thread-self/ns/net") as before, open(f"/proc/{self.admin.pid}/ns/net") as there:
            _set_namespace(there.fileno())
            try:
                yield
            finally:
                _set_namespace(before.fileno())


def _set_namespace(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _ip(pid: int, arguments: str) -> None:
    """iproute2 in that process's network; process ids in `arguments` are this machine's."""
    subprocess.run(["nsenter", "--target", str(pid), "--net", "ip", *arguments.split()], check=True)


def _is_first(pid: int, depth: int) -> bool:
    """Whether it is the first process of a pid namespace, `depth` deep, this one's counted."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                ids = line.split()[1:]
                return len(ids) == depth and ids[-1] == "1"
    return False


def left_of(pids: Sequence[int], timeout_s: float = 10) -> list[int]:
    """Those that still run after so long, zombies aside."""
    deadline = time.monotonic() + timeout_s
    while left := [pid for pid in pids if title(pid)]:
        if time.monotonic() > deadline:
            return left
        time.sleep(0.05)
    return []
