"""The readiness probe: whom it asks, and what it says when nobody answers as hoped."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from rtp_llm import app
from rtp_llm.config import HttpSettings
from rtp_llm.errors import UnavailableError


@contextmanager
def answering(status: int, body: bytes) -> Iterator[tuple[str, list[str]]]:
    """(URL, paths that were asked for)"""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def test_the_probe_asks_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with answering(200, b"{}") as (url, asked):
        app._wait_ready(url, 3, timeout_s=5)
        assert asked == ["/health?wait_s=5&workers=3"]


def test_a_router_that_is_not_ready_is_quoted_and_a_proxy_named_by_its_status() -> None:
    words = json.dumps({"error": {"message": "no worker is connected"}}).encode()
    for body, says in ((words, "no worker is connected"), (b"<html>", "503")):
        with answering(503, body) as (url, _), pytest.raises(UnavailableError, match=says):
            app._wait_ready(url, 1)


def test_a_silent_endpoint_is_given_up_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "READY_MARGIN_S", 0)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UnavailableError, match=f"{url} can't be reached.*10.0.0.1:6379.*head node"):
            app._wait_ready(url, 1, timeout_s=0.2)


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:80"), ("::", "http://[::1]:80"), ("::1", "http://[::1]:80"), ("a", "http://a:80")],
)
def test_the_probe_asks_an_address_of_this_machine(host: str, url: str) -> None:
    assert app._url(HttpSettings(host=host, port=80)) == url


def test_ports_are_probed_in_the_hosts_own_address_family() -> None:
    assert app._listenable(HttpSettings(host="localhost", port=0)).port in app.DRAWN_PORTS
    if socket.has_ipv6 and _has_ipv6_loopback():
        with socket.socket(socket.AF_INET6) as taken:
            taken.bind(("::1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(UnavailableError, match=f"http.port {port} on ::1"):
                app._listenable(HttpSettings(host="::1", port=port))


def _has_ipv6_loopback() -> bool:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
        return True


def test_all_replicas_look_for_a_relative_model_in_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have other working directories than where the application is built."""
    monkeypatch.chdir(tmp_path)
    application = app.build({"model": {"path": "models/m"}})
    bound = [application._bound_deployment, *application._bound_deployment.init_args[1:]]
    sections = [each.init_args[0] for each in (bound[0], *(pool._bound_deployment for pool in bound[1:]))]
    assert [each["model"]["path"] for each in sections] == [str(tmp_path / "models" / "m")] * 3
