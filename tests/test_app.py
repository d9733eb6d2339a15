"""The readiness probe: whom it asks, and what it says when nobody answers as hoped."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import serve

from rtp_llm import app, directory, serve_internals
from rtp_llm.config import HttpSettings, load_config
from rtp_llm.errors import ConfigError, UnavailableError


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
        app._wait_ready(url, 0, timeout_s=5)  # all pools begin empty
        assert asked == ["/health?wait_s=5&workers=3", "/health?wait_s=5"]


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
    (tmp_path / "models/m").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    application = app.build({"model": {"path": "models/m"}})
    bound = [application._bound_deployment, *application._bound_deployment.init_args[1:]]
    sections = [each.init_args[0] for each in (bound[0], *(pool._bound_deployment for pool in bound[1:]))]
    assert [each["model"]["path"] for each in sections] == [str(tmp_path / "models" / "m")] * 3


class JoinedServe:
    """Serve of a Ray that was joined: its applications with their routes, and which driver has deployed each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **routes: str) -> None:
        self.routes = routes
        self.deployers = dict.fromkeys(routes, "somebody")
        self.driver = "first"  # who calls
        self.broken = False
        self.removed_directories: list[str] = []
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
        monkeypatch.setattr(serve_internals, "routes", lambda: self.routes)
        monkeypatch.setattr(
            serve_internals, "deployers", lambda name: {self.deployers[n] for n in self.routes if n == name}
        )
        monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: self.driver))
        monkeypatch.setattr(directory, "remove_directory", self.removed_directories.append)
        monkeypatch.setattr(app, "_wait_ready", lambda *_: None)
        monkeypatch.setattr(app, "_room", lambda *_: [])
        for name in ("start", "run", "status", "delete"):
            monkeypatch.setattr(serve, name, getattr(self, name))

    def start(self, **_: object) -> None: ...

    def run(self, _: object, *, name: str, route_prefix: str) -> None:
        self.routes[name], self.deployers[name] = route_prefix, self.driver
        if self.broken:
            raise RuntimeError("a deployment failed")

    def status(self) -> Any:
        return SimpleNamespace(applications={})

    def delete(self, name: str) -> None:
        del self.routes[name], self.deployers[name]


def application(said: list[str] | None = None, **http: Any) -> app._Application:
    config = load_config(environ={}).with_token()
    return app._Application(config, HttpSettings(port=8000, **http), (said if said is not None else []).append)


def test_an_application_deletes_what_it_has_deployed_and_its_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    there = JoinedServe(monkeypatch, other="/other")
    ours = application()
    assert ours.start(replace=False) == "http://127.0.0.1:8000"
    ours.stop()
    assert there.routes == {"other": "/other"} and len(there.removed_directories) == 1
    there.broken = True
    failed = application()
    with pytest.raises(UnavailableError, match="the application didn't start"):
        failed.start(replace=False)
    failed.stop()
    assert there.routes == {"other": "/other"}


def test_an_application_takes_no_others_name_unless_it_replaces_it_nor_its_route(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = JoinedServe(monkeypatch, other="/other")
    refused = application(route_prefix="/other")
    with pytest.raises(UnavailableError, match=r"http\.route_prefix /other belongs to application 'other'"):
        refused.start(replace=True)
    refused.stop()
    assert there.deployers == {"other": "somebody"} and there.removed_directories == []

    there = JoinedServe(monkeypatch, demo="/", other="/other")
    refused = application()
    with pytest.raises(UnavailableError, match="'demo' is on this Ray already: --replace takes its place"):
        refused.start(replace=False)
    refused.stop()
    assert there.deployers == {"demo": "somebody", "other": "somebody"}
    application().start(replace=True)
    assert there.deployers == {"demo": "first", "other": "somebody"}


def test_an_application_that_was_replaced_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    there = JoinedServe(monkeypatch)
    said: list[str] = []
    first, second = application(said), application()
    first.start(replace=False)
    there.driver = "second"
    second.start(replace=True)
    there.driver = "first"
    first.stop()
    assert there.routes == {"demo": "/"} and there.removed_directories == []
    assert said[-1] == "application 'demo' was deployed anew by somebody else: it stays"
    there.driver = "second"
    second.stop()
    assert there.routes == {}


def test_a_token_in_serves_args_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match=r"worker\.token_file") as refused:
        app.build({"worker": {"token": "s3cret"}})
    assert "s3cret" not in str(refused.value)
    assert app.build({"worker": {"token": ""}}) is not None
    assert app.build(load_config(environ={}).with_token().model_dump()) is not None  # rtp-llm serve's own


def test_the_pools_are_told_where_the_metrics_ask_for_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("r00t\n")
    there = JoinedServe(monkeypatch)
    keys: list[str] = []
    monkeypatch.setattr(app, "_room", lambda _, key: keys.append(key) or [])
    config = load_config(overrides={"http.admin_key_file": str(tmp_path / "key")}, environ={}).with_token()
    app._Application(config, HttpSettings(port=8000), lambda _: None).start(replace=False)
    assert keys == ["r00t"] and there.routes


def test_a_router_runs_where_its_settings_say() -> None:
    options = {"resources": {"node:__internal_head__": 0.001}, "label_selector": {"pool": "head"}}
    router = app.build({"router": options})._bound_deployment
    assert router.name == "router" and router.ray_actor_options.items() >= options.items()


def test_a_port_that_another_process_has_drawn_is_not_drawn_though_nobody_listens_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app, "_claims", [])
    monkeypatch.setattr(app, "DRAWN_PORTS", range(18_430, 18_432))
    monkeypatch.setattr(app, "NUM_DRAWS", 2)
    code = "import sys; from rtp_llm import app; print(app._claim(int(sys.argv[1])), flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "18430"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "True\n"
        assert app._free_ports(1, socket.AF_INET, "127.0.0.1") == [18_431]
        with pytest.raises(OSError, match="only 0 are free"):
            app._free_ports(1, socket.AF_INET, "127.0.0.1")
        other.communicate()
    assert app._free_ports(1, socket.AF_INET, "127.0.0.1") == [18_430]
    for claim in app._claims:
        claim.close()
