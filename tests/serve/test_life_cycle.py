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
from tests.serve.redeploy import JOIN
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


def serve_on(ray_address: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """`rtp-llm serve` on a Ray that runs, where it is to be refused."""
    return subprocess.run(
        [sys.executable, "-m", "rtp_llm.cli", "serve", *flags],
        env=environment() | JOIN | {"RAY_ADDRESS": ray_address},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_second_serve_on_one_ray_that_would_disturb_the_first_is_refused(deployment: Deployment) -> None:
    """Another port, the same name, or another name on the first one's route."""
    port = int(deployment.url.rpartition(":")[2])
    before = deployment.replicas("router") + deployment.replicas("prefill") + deployment.replicas("decode")
    for flags, says in (
        (
            ["--port", "1", "--served-model-name", "other"],
            f"http.port 1: Serve runs on this Ray already and listens on 127.0.0.1:{port}",
        ),
        (["--port", "0"], "an application 'demo' is on this Ray already: --replace takes its place"),
        (
            ["--port", f"{port}", "--served-model-name", "other"],
            "http.route_prefix / belongs to application 'demo' on this Ray",
        ),
    ):
        run = serve_on(deployment.ray_address, *flags)
        assert run.returncode == 1, run.stderr
        assert says in run.stderr.splitlines()[-1]
    assert deployment.is_healthy() and deployment.models() == ["demo"]
    assert deployment.replicas("router") + deployment.replicas("prefill") + deployment.replicas("decode") == before


@pytest.mark.slow
def test_replace_takes_an_applications_place_and_who_was_replaced_deletes_nothing(deployment: Deployment) -> None:
    """Two drivers on the Ray of a third, whose own application goes on beside them."""
    port = deployment.url.rpartition(":")[2]
    joining = ["env", *(f"{name}={value}" for name, value in (JOIN | {"RAY_ADDRESS": deployment.ray_address}).items())]
    flags = ["--port", port, "--decode", "0", "--served-model-name", "other", "--http.route-prefix", "/other"]
    first = Deployment(*flags, prefix=joining)
    replaced = first.metrics().workers("prefill")
    second = Deployment(*flags, "--replace", prefix=joining)
    assert second.url == first.url == f"{deployment.url}/other"
    second.wait_workers(1)
    running = second.metrics().workers("prefill")
    assert running and not running & replaced

    assert first.stop(signal.SIGINT) == 0, "\n".join(first.lines)
    assert any("application 'other' was deployed anew by somebody else: it stays" in line for line in first.lines)
    body = {"messages": [{"role": "user", "content": "What is 23 + 58?"}], "temperature": 0}
    answer = httpx.post(f"{second.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.json()["choices"][0]["message"]["content"] == "23 + 58 = 81."
    assert second.metrics().workers("prefill") == running

    assert second.stop(signal.SIGINT) == 0, "\n".join(second.lines)
    assert httpx.get(f"{second.url}/health").status_code == 404
    assert deployment.is_healthy() and deployment.models() == ["demo"]


BESIDE = """
import ray, sys
from ray import serve
from rtp_llm.app import build

ray.init(logging_level="WARNING", log_to_driver=False)
serve.run(build({"decode": {"replicas": 0}}), name="second", route_prefix="/second")
print("runs", flush=True)
sys.stdin.read()
serve.delete("second")
"""


def test_two_applications_of_one_model_on_one_ray_have_their_own_workers(deployment: Deployment) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BESIDE],
        env=environment() | JOIN | {"RAY_ADDRESS": deployment.ray_address},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as second:
        assert second.stdout is not None and second.stdin is not None
        assert b"runs" in iter(second.stdout.readline, b"").__next__()
        for prefix, own in (("", 2), ("/second", 1)):
            health = httpx.get(f"{deployment.url}{prefix}/health", params={"workers": own, "wait_s": 60}, timeout=70)
            assert health.status_code == 200
            assert httpx.get(f"{deployment.url}{prefix}/health", params={"workers": own + 1}).status_code == 503
        second.stdin.close()
        assert second.wait(60) == 0
    assert deployment.is_healthy()
