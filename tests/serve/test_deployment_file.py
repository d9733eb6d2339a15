"""deploy/ray's file for Serve and its variables, as somebody uses them who runs Ray himself."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serve.deployment import FileDeployment, wait_for
from tests.serve.test_clients_that_leave import (
    ENDLESS,
    SEGMENTS,
    WITHIN_S,
    asking,
    nothing_runs_within,
    running,
    the_running_haproxys_file_has_no_faults,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def deployed() -> Iterator[FileDeployment]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="rtp-") as state:  # a socket's path is short
        found = FileDeployment("one_host.yaml", Path(state))
        found.wait_workers(2)
        yield found
        found.stop(signal.SIGINT)


def test_its_haproxy_has_read_a_file_without_faults(deployed: FileDeployment) -> None:
    the_running_haproxys_file_has_no_faults(deployed)


def test_it_answers(deployed: FileDeployment) -> None:
    question = {"messages": [{"role": "user", "content": "What is 23 + 58?"}], "temperature": 0}
    answer = httpx.post(f"{deployed.url}/v1/chat/completions", json=question, timeout=30).json()
    assert answer["choices"][0]["message"]["content"] == "23 + 58 = 81."


def test_a_file_with_autoscaled_pools_is_deployed_and_answers() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="rtp-") as state:
        found = FileDeployment("autoscaled.yaml", Path(state))
        found.wait_workers(2)
        test_it_answers(found)
        assert found.stop(signal.SIGINT) == 0


@pytest.mark.alone
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_answers_of_clients_that_left_end(deployed: FileDeployment, stream: bool) -> None:
    with asking(deployed, {**ENDLESS, "stream": stream}, SEGMENTS["headers, body"]):
        wait_for(lambda: running(deployed) == 6)
    nothing_runs_within(deployed, WITHIN_S)
