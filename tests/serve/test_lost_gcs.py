"""The GCS, Ray's memory of the cluster, is killed under streams; with Redis behind it, it comes back and knows all."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serve.deployment import FileDeployment, alive, descendants, title, wait_for
from tests.serve.streams import Streams, answers
from tests.serve.test_faults import long_answers

REDIS = shutil.which("redis-server") or ""
APPLICATION = "rtp-llm"  # of one_host.yaml

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not REDIS, reason="redis-server is not installed"),
]


@pytest.fixture(scope="module")
def deployed() -> Iterator[FileDeployment]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    redis = subprocess.Popen(
        [REDIS, "--bind", "127.0.0.1", "--port", str(port), "--save", ""], stdout=subprocess.DEVNULL
    )
    try:
        with tempfile.TemporaryDirectory(dir="/tmp", prefix="rtp-") as state:  # a socket's path is short
            found = FileDeployment("one_host.yaml", Path(state), env={"RAY_REDIS_ADDRESS": f"127.0.0.1:{port}"})
            found.wait_workers(2)
            yield found
            found.stop(signal.SIGINT)
    finally:
        redis.kill()
        redis.wait()


class Gcs:
    """The process, and the same one again: on Kubernetes the operator starts it, by hand whoever watches it."""

    def __init__(self, deployed: FileDeployment) -> None:
        pids = descendants(deployed.process.pid)
        [self.pid] = [pid for pid in pids if title(pid).split(" ")[0].endswith("/gcs_server")]
        [raylet] = [title(pid) for pid in pids if title(pid).split(" ")[0].endswith("/raylet")]
        port = re.search(r"--gcs-address=\S+:(\d+)", raylet)
        assert port is not None, raylet
        process = Path(f"/proc/{self.pid}")
        command = process.joinpath("cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        # Where the others look for it: here it drew the port, `ray start` has --port.
        own_port = f"--gcs_server_port={port.group(1)}".encode()
        self._command = [own_port if part.startswith(b"--gcs_server_port=") else part for part in command]
        entries = process.joinpath("environ").read_bytes().split(b"\0")
        self._environment = dict(entry.split(b"=", 1) for entry in entries if b"=" in entry)
        self._again: subprocess.Popen[bytes] | None = None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        wait_for(lambda: alive({self.pid: "gcs_server"}) == {} or "gcs_server" not in title(self.pid))

    def start(self) -> None:
        self._again = subprocess.Popen(self._command, env=self._environment, stdout=subprocess.DEVNULL)

    def close(self) -> None:
        if self._again is not None:
            self._again.kill()
            self._again.wait()


async def test_streams_and_new_requests_go_on_without_the_gcs_and_workers_are_replaced_once_it_is_back(
    deployed: FileDeployment,
) -> None:
    undisturbed = await answers(deployed.url, long_answers())
    gcs = Gcs(deployed)
    try:
        async with Streams(deployed.url, long_answers()) as streams:
            await streams.reached(5)
            await asyncio.to_thread(gcs.kill)
            assert await streams.finished() == undisturbed
        assert await answers(deployed.url, long_answers()) == undisturbed  # placed, handed over, all without it
        gcs.start()
        [victim] = deployed.replicas("decode", application=APPLICATION)
        async with Streams(deployed.url, long_answers()) as streams:
            await streams.reached(5)
            os.kill(victim, signal.SIGKILL)
            assert await streams.finished() == undisturbed
        await asyncio.to_thread(
            wait_for, lambda: deployed.replicas("decode", application=APPLICATION) not in ([], [victim]), 120
        )
        await asyncio.to_thread(deployed.wait_workers, 2)
        assert await answers(deployed.url, long_answers()) == undisturbed
        assert httpx.get(f"{deployed.url}/live").status_code == 200  # noqa: ASYNC210
    finally:
        gcs.close()
