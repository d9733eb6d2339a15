"""Clients that leave, or that don't read, through HAProxy: their answers end with them."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from rtp_llm.router import haproxy
from tests.serve.conftest import CLIENT_BUFFER_TOKENS
from tests.serve.deployment import Deployment, wait_for

CHATS = Path(__file__).with_name("openai_chats.py")
WITHIN_S = 1.0  # of the close nothing runs any more
ENDLESS = {"prompt": [5, 6, 7], "max_tokens": 1900, "min_tokens": 1900, "ignore_eos": True, "temperature": 0}

Segments = Callable[[bytes, bytes], Sequence[bytes]]
SEGMENTS: dict[str, Segments] = {
    "one segment": lambda head, body: [head + body],
    "headers, body": lambda head, body: [head, body],
    "many segments": lambda head, body: [head[:20], head[20:], *(body[i : i + 40] for i in range(0, len(body), 40))],
}


def running(deployment: Deployment) -> float:
    return deployment.metrics().total("rtp_llm_requests_running")


def connect(deployment: Deployment) -> socket.socket:
    url = httpx.URL(deployment.url)
    client = socket.socket()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.connect((url.host, url.port))
    return client


def head(body: bytes, path: str = "/v1/completions") -> bytes:
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: x",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "",
        "",
    )
    return "\r\n".join(lines).encode()


@contextmanager
def asking(deployment: Deployment, body: dict[str, Any], segments: Segments, count: int = 6) -> Iterator[None]:
    """So many clients have asked and don't read."""
    content = json.dumps(body).encode()
    clients = [connect(deployment) for _ in range(count)]
    try:
        for pieces in zip(*[segments(head(content), content)] * count, strict=True):
            for client, piece in zip(clients, pieces, strict=True):
                client.sendall(piece)
            time.sleep(0.005)  # a segment of its own
        yield
    finally:
        for client in clients:
            client.close()


def nothing_runs_within(deployment: Deployment, seconds: float) -> None:
    """By the router's own count, and at the workers: blocks referenced."""
    began = time.monotonic()

    def left() -> float:
        metrics = deployment.metrics()
        return metrics.total("rtp_llm_requests_running") + metrics.total("rtp_llm_kv_blocks", state="referenced")

    wait_for(lambda: left() == 0, timeout_s=seconds + 10)
    took = time.monotonic() - began
    assert took < seconds, f"ran on for {took:.1f} s"


def the_running_haproxys_file_has_no_faults(deployment: Deployment) -> None:
    """A reload writes Serve's own file first, and two HAProxys may run for a while."""
    found: list[str] = []

    def are_without_faults() -> bool:
        commands = [text for text in deployment.processes().values() if "/haproxy -db " in text]
        found[:] = [Path(command.partition(" -f ")[2].split()[0]).read_text() for command in commands]
        return bool(found) and not any(haproxy.faults(text) for text in found)

    wait_for(are_without_faults)
    url = httpx.URL(deployment.url)
    assert all(f"bind {url.host}:{url.port}" in text for text in found)


def test_the_running_haproxy_has_read_a_file_without_faults(deployment: Deployment) -> None:
    the_running_haproxys_file_has_no_faults(deployment)


@pytest.mark.alone
@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_answers_of_clients_that_left_end(deployment: Deployment, stream: bool, segments: Segments) -> None:
    with asking(deployment, {**ENDLESS, "stream": stream}, segments):
        wait_for(lambda: running(deployment) == 6)
    nothing_runs_within(deployment, WITHIN_S)


def test_a_client_that_does_not_read_is_cut(deployment: Deployment) -> None:
    """What the sockets between take is some megabytes; an answer of 24,000 tokens with 20 alternatives each is 18."""
    before = deployment.metrics().total("rtp_llm_output_tokens_total")
    body = {**ENDLESS, "max_tokens": 1500, "min_tokens": 1500, "n": 16, "logprobs": 20, "stream": True}
    with asking(deployment, body, SEGMENTS["one segment"], count=1):
        wait_for(lambda: running(deployment) == 16)
        wait_for(lambda: running(deployment) == 0, timeout_s=90)
        made = deployment.metrics().total("rtp_llm_output_tokens_total") - before
        assert 16 * CLIENT_BUFFER_TOKENS < made < 16 * 1500


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("how", ["whole", "streamed"])
def test_nothing_runs_a_second_after_200_openai_chats_with_short_timeouts_have_left(
    deployment: Deployment, how: str
) -> None:
    base_url = f"{deployment.url}/v1"
    chats = subprocess.Popen([sys.executable, CHATS, base_url, how], stdin=subprocess.PIPE)
    try:
        wait_for(lambda: running(deployment) >= 100, timeout_s=60)
        chats.communicate(timeout=30)
    finally:
        chats.kill()
    nothing_runs_within(deployment, WITHIN_S)
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=10) as client:
        began = time.monotonic()
        client.completions.create(model="demo", prompt="1 2 3", max_tokens=4)
        assert time.monotonic() - began < 1
    assert chats.returncode == 0
