"""The machines themselves."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.multihost.site import left_of
from tests.serve.deployment import ROOT

pytestmark = pytest.mark.multihost

PROGRAM = """
import os, signal, sys
from tests.multihost.site import Site
site = Site()
hosts = [site.start_host(f"host{i}", f"10.0.0.{i}") for i in (1, 2)]
site.admin.run("ssh ubuntu@10.0.0.1 'nohup sleep 600 > /dev/null 2>&1 &'")
print(*site.pids(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def links() -> set[str]:
    return {path.name for path in Path("/sys/class/net").iterdir()}


def test_a_site_whose_maker_is_killed_leaves_nothing_behind() -> None:
    before = links(), Path("/proc/mounts").read_text()
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in run.stdout.split()]
    assert len(pids) == 4  # each machine's first, and the sleep
    assert left_of(pids) == []
    assert (links(), Path("/proc/mounts").read_text()) == before
