"""What all tests share: marks, their time limits, and what this machine cannot run."""

import os
from pathlib import Path

import pytest

MARKS = {
    "slow": "takes more than some seconds; `make test` leaves it out, `make test-slow` runs it",
    "gpu": "needs an NVIDIA GPU",
    "parity": "compares live with transformers; `make test-parity` runs it",
    "multihost": "needs several hosts (RTP_LLM_TEST_HOSTS names them)",
}
SLOW_TIMEOUT_S = 900


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in MARKS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT_S))
        if item.get_closest_marker("gpu") and not Path("/dev/nvidiactl").exists():
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here"))
        if item.get_closest_marker("multihost") and not os.environ.get("RTP_LLM_TEST_HOSTS"):
            item.add_marker(pytest.mark.skip(reason="RTP_LLM_TEST_HOSTS names no hosts"))
