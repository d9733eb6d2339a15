"""Starting and stopping: nothing is left behind, deployments on one host don't meet, what keeps one from starting is said."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.serve.deployment import ROOT, Deployment, alive, environment, wait_for
from tests.serve.streams import Streams

DEMO = ROOT / "rtp_llm" / "demo"
ENDLESS = {"prompt": "a b c", "max_tokens": 600, "ignore_eos": True, "temperature": 0}


async def test_a_second_deployment_meets_nobody_and_its_interrupt_finishes_streams_and_leaves_nothing(
    deployment: Deployment,
) -> None:
    second = Deployment("--decode", "0", "--served-model-name", "second")
    processes = second.processes()
    assert not processes.keys() & deployment.processes().keys()
    assert second.metrics().workers("decode") == set()
    assert second.models() == ["second"]
    running = Streams(second.url, [ENDLESS] * 4)
    async with running as streams:
        await streams.reached(5)
        os.killpg(second.process.pid, signal.SIGINT)  # as Ctrl-C in a terminal does
        assert len((await streams.finished())[0]) == 600
    assert second.exit_status() == 0, "\n".join(second.lines)
    assert alive(processes) == {}
    assert [line for line in second.lines if line.endswith("stopping: running answers finish first")] != []
    assert deployment.is_healthy()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_deployment_that_is_terminated_or_killed_leaves_no_process(number: signal.Signals) -> None:
    deployment = Deployment()
    processes = deployment.processes()
    assert deployment.stop(number) == (0 if number == signal.SIGTERM else -number)
    wait_for(
        lambda: alive(processes) == {}, timeout_s=0.1 if number == signal.SIGTERM else 120
    )  # Ray's agents ask so seldom


@pytest.mark.slow
def test_a_second_signal_kills_at_once() -> None:
    deployment = Deployment()
    processes = deployment.processes()
    deployment.process.send_signal(signal.SIGINT)
    wait_for(lambda: any("stopping" in line for line in deployment.lines))
    assert deployment.stop(signal.SIGINT) == -signal.SIGKILL
    wait_for(lambda: alive(processes) == {}, timeout_s=5)


@pytest.mark.slow
def test_a_worker_that_cannot_start_is_said_in_one_line(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "broken")
    os.truncate(tmp_path / "broken" / "model.safetensors", 3_000_000)
    run = subprocess.run(
        [sys.executable, "-m", "rtp_llm.cli", "serve", str(tmp_path / "broken"), "--port", "0", "--decode", "0"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == (
        f"rtp-llm: the application didn't start: prefill: ModelLoadError: {tmp_path}/broken/model.safetensors: truncated: "
        f"expected {(DEMO / 'model.safetensors').stat().st_size} bytes, found 3000000"
    )


@pytest.mark.slow
def test_too_little_shared_memory_is_warned_of_and_kv_goes_over_tcp() -> None:
    """In a mount namespace with a small /dev/shm."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("mount namespaces aren't allowed here")
    deployment = Deployment(
        prefix=["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=16m tmpfs /dev/shm && exec "$@"', "-"]
    )
    body = {"messages": [{"role": "user", "content": "What is 23 + 58?"}], "temperature": 0}
    answer = httpx.post(f"{deployment.url}/v1/chat/completions", json=body, timeout=60).json()
    assert answer["choices"][0]["message"]["content"] == "23 + 58 = 81."
    assert deployment.metrics().total("rtp_llm_transfer_bytes_total", direction="received", transport="tcp") > 0
    assert deployment.stop() == 0
    assert any("/dev/shm has " in line and "KV goes over TCP" in line for line in deployment.lines)
