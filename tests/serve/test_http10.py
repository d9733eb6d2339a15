"""A client that speaks HTTP/1.0, as nginx's proxy_pass does by default, through Serve's HAProxy."""

from __future__ import annotations

import json
import socket

import httpx
import pytest

from tests.serve.deployment import Deployment

TIMEOUT_S = 30


def answer(deployment: Deployment, body: dict[str, object], *headers: str) -> tuple[str, str]:
    """Head and body, until the server closes."""
    url, content = httpx.URL(deployment.url), json.dumps({"prompt": "1 2 3", "temperature": 0, **body})
    lines = ["POST /v1/completions HTTP/1.0", "Content-Type: application/json", *headers]
    with socket.create_connection((url.host, url.port), TIMEOUT_S) as client:
        client.sendall("\r\n".join([*lines, f"Content-Length: {len(content)}", "", content]).encode())
        head, _, rest = b"".join(iter(lambda: client.recv(65536), b"")).decode().partition("\r\n\r\n")
    return head.lower(), rest


@pytest.mark.parametrize("headers", [(), ("Connection: keep-alive",)], ids=["close", "keep-alive"])
def test_a_stream_ends_with_the_connection_and_has_no_chunks(deployment: Deployment, headers: tuple[str, ...]) -> None:
    head, body = answer(deployment, {"max_tokens": 8, "stream": True}, *headers)
    assert "200 ok" in head and "transfer-encoding" not in head and "connection: close" in head
    events = body.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: "))["choices"] for event in events[:-2])


def test_a_whole_answer_and_an_error_have_their_length(deployment: Deployment) -> None:
    for max_tokens, has in ((8, "choices"), (0, "error")):
        head, body = answer(deployment, {"max_tokens": max_tokens})
        assert f"content-length: {len(body)}" in head and "transfer-encoding" not in head
        assert has in json.loads(body)
