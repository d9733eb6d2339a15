import json
import subprocess
from pathlib import Path

import pytest

from tests.build_dir import build_dir


def binary() -> Path:
    return build_dir() / "tests" / "transfer_cycles"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["shm", "tcp"])
def test_a_thousand_connects_and_forced_closes_leave_memory_flat(mode: str) -> None:
    if not binary().exists():
        pytest.skip(f"{binary()} is not built")
    run = subprocess.run([binary(), mode, "1000"], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    early, *_, late = (json.loads(line) for line in run.stdout.splitlines())
    print(early, late)
    for side in (0, 1):
        assert late["fds"][side] <= early["fds"][side] + 4
        assert late["anon_kib"][side] <= early["anon_kib"][side] + 1024  # 750 cycles
        assert late["shared_kib"][side] <= 48 * 1024  # UCX's segments, touched bit by bit
