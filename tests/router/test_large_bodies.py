"""What bodies within the limit may cost: the loop's time (CPU time of a callback, on a busy machine too) and memory."""

import asyncio
import gc
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from fastapi import FastAPI

from rtp_llm.config import load_config
from rtp_llm.directory import StaticMembership
from rtp_llm.router.ingress import build_ingress
from rtp_llm.router.response_store import KeptResponse
from rtp_llm.router.service import LARGE_BODY_BYTES, Service
from tests.router.large_bodies import LargeBody, large_bodies

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240), pytest.mark.alone]

MIB = 1 << 20
LOOP_S = 0.05
MEMORY = 10  # times the body
CHUNK_BYTES = 64 << 10  # as uvicorn hands them on


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service() -> AsyncIterator[Service]:
    """Without workers: a request that is right waits for one until it is given up."""
    service = Service(load_config(overrides={"router.queue_timeout_s": 0.1}, environ={}), StaticMembership())
    service.start()
    gc.collect()
    gc.freeze()  # as a router does (deployment.py)
    await post(
        build_ingress(lambda: service), LargeBody("", "/v1/completions", b'{"prompt": "a"' + b" " * MIB + b"}", 503)
    )
    yield service
    gc.unfreeze()
    await service.close()


async def post(app: FastAPI, body: LargeBody) -> tuple[int, bytes]:
    """(status, answer)"""
    chunks = [body.content[at : at + CHUNK_BYTES] for at in range(0, body.size, CHUNK_BYTES)]
    incoming = iter([{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks[:-1]])
    said: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if (message := next(incoming, None)) is not None:
            return message
        if chunks:
            return {"type": "http.request", "body": chunks.pop(), "more_body": bool(chunks.clear())}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        said.append(message)

    scope = {
        "type": "http", "method": "POST", "path": body.path, "raw_path": b"", "query_string": b"", "http_version": "1.1",
        "headers": [(b"content-type", b"application/json")], "scheme": "http", "asgi": {"version": "3.0"},
        "server": ("router", 80),
    }  # fmt: skip
    await app(scope, receive, send)
    return said[0]["status"], b"".join(message.get("body", b"") for message in said)


@contextmanager
def callbacks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """CPU time of each callback of the event loop, in this thread."""
    took: list[float] = []
    gc.collect()
    gc.freeze()  # what pytest has gathered meanwhile is not a router's
    run = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        began = time.thread_time()
        run(handle)
        took.append(time.thread_time() - began)

    with monkeypatch.context() as patch:
        patch.setattr(asyncio.Handle, "_run", timed)
        yield took


def memory(pid: int | str, name: str) -> int:
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) << 10


@contextmanager
def growth(*pids: int | str) -> Iterator[list[int]]:
    """Bytes by which the processes' memory grew at its peak, all together."""
    before = sum(memory(pid, "VmRSS") for pid in pids)
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
    grown: list[int] = []
    yield grown
    grown.append(sum(memory(pid, "VmHWM") for pid in pids) - before)


async def check(service: Service, body: LargeBody, monkeypatch: pytest.MonkeyPatch, more_bytes: int = 0) -> None:
    """`more_bytes`: that it goes on with."""
    app = build_ingress(lambda: service)
    assert service.bodies.pid is not None
    with growth("self", service.bodies.pid) as grown, callbacks(monkeypatch) as took:
        status, answer = await post(app, body)
    assert status == (503 if body.status == 200 else body.status), answer[:500]
    message = json.loads(answer)["error"]["message"]
    assert len(message) < 1000 and (status in (400, 404) or "no worker took the request" in message), message
    assert max(took) < LOOP_S, f"a callback took {max(took) * 1000:.0f} ms"
    size = body.size + more_bytes
    assert grown[0] < MEMORY * size + 4 * MIB, f"{grown[0] / size:.1f} times the body"


@pytest.mark.parametrize("body", list(large_bodies(MIB)), ids=lambda body: body.name)
async def test_a_body_of_1_mib(service: Service, body: LargeBody, monkeypatch: pytest.MonkeyPatch) -> None:
    await check(service, body, monkeypatch)


async def test_a_history_of_1_mib(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """That a small body goes on with: as one large body."""
    said = {"id": "msg_1", "type": "message", "status": "completed", "role": "user", "content": []}
    for name, count, size, status in (("text", 1, MIB, 400), ("items", MIB // 200, 1, 400)):
        item = json.dumps({**said, "content": [{"type": "input_text", "text": "a" * size}]}).encode()
        service.responses.keep("", KeptResponse(name, b"{}", [("msg_1", item)] * count, [], None))
        content = json.dumps({"input": "a", "previous_response_id": name}).encode()
        await check(
            service, LargeBody(name, "/v1/responses", content + b" " * (MIB - len(content)), status), monkeypatch
        )
        await check(service, LargeBody(name, "/v1/responses", content, status), monkeypatch, MIB)


@pytest.mark.slow
@pytest.mark.parametrize("mib", [4, 8])
async def test_larger_bodies(service: Service, mib: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for body in large_bodies(mib * MIB):
        await check(service, body, monkeypatch)


@pytest.mark.parametrize("body", list(large_bodies(LARGE_BODY_BYTES)), ids=lambda body: body.name)
async def test_the_largest_that_is_parsed_on_the_loop(
    service: Service, body: LargeBody, monkeypatch: pytest.MonkeyPatch
) -> None:
    if body.size <= LARGE_BODY_BYTES:
        monkeypatch.setattr(service, "bodies", None)
        with callbacks(monkeypatch) as took:
            status, _ = await post(build_ingress(lambda: service), body)
        assert status == (503 if body.status == 200 else body.status)
        assert max(took) < LOOP_S, f"a callback took {max(took) * 1000:.0f} ms"
