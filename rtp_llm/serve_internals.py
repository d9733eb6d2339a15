"""The one door to what Ray keeps to itself, where it has no public call for what we need. All is as read in Ray 2.60.0;
tests/test_serve_internals.py fails where an attribute is gone.

Ray reads its environment when it is imported, so nothing here imports it before it is called.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def sigterm_left_alone() -> Iterator[None]:
    """ray.init() puts a SIGTERM handler of its own in place (ray/_private/worker.py); in this block it doesn't."""
    from ray._private import utils

    set_sigterm_handler = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = set_sigterm_handler


def cluster_token() -> str:
    """The secret that each call to this Ray brings (RAY_AUTH_MODE=token); empty: it asks for none."""
    import ray

    raylet: Any = ray._raylet
    if raylet.get_authentication_mode() != raylet.AuthenticationMode.TOKEN:
        return ""
    return str(raylet.AuthenticationTokenLoader.instance().get_raw_token())


def http_address() -> tuple[str, int] | None:
    """Host and port that the running Serve's proxies listen on; None: no Serve runs. serve.start() leaves one that runs
    as it is and says so in its log only (ray/serve/_private/api.py)."""
    client = _client()
    return None if client is None else (str(client.http_config.host), int(client.http_config.port))


def routes() -> dict[str, str | None]:
    """Each application's route prefix, which serve.status() doesn't tell; None while it isn't known."""
    client = _client()
    found = client.get_serve_details()["applications"] if client is not None else {}
    return {name: application["route_prefix"] for name, application in found.items()}


def deployers(application: str) -> set[str]:
    """Job ids of the drivers that deployed what the application consists of; empty: there is no such application. Its time of
    deployment, which serve.status() tells, is the first one's for whatever serve.run() has deployed since
    (ray/serve/_private/application_state.py)."""
    import ray

    client = _client()
    infos = ray.get(client._controller.list_deployments_internal.remote()) if client is not None else {}
    return {str(info.deployer_job_id) for id, (info, _) in infos.items() if id.app_name == application}


def _client() -> Any:
    from ray.serve.context import _get_global_client

    return _get_global_client(raise_if_no_controller_running=False)


def shut_down_serve(timeout_s: float) -> None:
    """serve.shutdown(), but for the retry of a call that ends with its callee, which Ray would report as an error."""
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    with contextlib.suppress(ray.exceptions.RayActorError):
        ray.get(controller.graceful_shutdown.options(max_task_retries=0).remote(), timeout=timeout_s)


def handle_calls_listen_on(host: str) -> None:
    """Serve gives each replica a gRPC server for handle calls (we make none) on all interfaces, without a setting for it. It is
    started after the constructor (ray/serve/_private/replica.py): from here on its address is `host`."""
    from ray.serve._private import replica

    add_port = replica.add_port_to_grpc_server

    def add_port_at_host(server: Any, address: str) -> int:
        return int(add_port(server, f"{host}:{address.rpartition(':')[2]}"))

    replica.add_port_to_grpc_server = add_port_at_host
