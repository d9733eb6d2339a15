"""The key of the commands that talk to a server."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from rtp_llm.chat import stream_chunks
from rtp_llm.http_client import KEY_VARIABLE, text_at
from rtp_llm.load.client import run
from rtp_llm.load.workload import Arrival


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str | None]]]:
    """(URL, Authorization header of each request)"""
    keys: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.append(self.headers["Authorization"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"data: [DONE]\n\n")

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", keys
        server.shutdown()


@pytest.mark.parametrize(("key", "header"), [("s3cret", "Bearer s3cret"), ("", None)])
async def test_the_environments_key_is_sent(
    asked: tuple[str, list[str | None]], monkeypatch: pytest.MonkeyPatch, key: str, header: str | None
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    url, keys = asked
    text_at(url, "/metrics")
    assert list(stream_chunks(url, "/v1/completions", {})) == []
    await run(url, "demo", [Arrival(0.0, (5, 6), 7)], None, lambda _: None)
    assert keys == [header] * 3
