"""What we use of Ray's insides is still there: each of these fails where an update of Ray has taken it away."""

import inspect
import re
import signal
from pathlib import Path

import pytest
from ray._private import utils, worker
from ray._private.authentication_test_utils import reset_auth_token_state
from ray.serve import context
from ray.serve._private import client, constants, controller, deployment_info, proxy_state, replica

from rtp_llm import serve_internals
from rtp_llm.app import serve_environment
from rtp_llm.config import HttpSettings


def test_ray_sets_its_sigterm_handler_where_it_is_kept_from_it() -> None:
    assert "ray._private.utils.set_sigterm_handler(" in inspect.getsource(worker)
    before = signal.getsignal(signal.SIGTERM)
    with serve_internals.sigterm_left_alone():
        utils.set_sigterm_handler(lambda *_: None)
        assert signal.getsignal(signal.SIGTERM) is before
    assert inspect.getmodule(utils.set_sigterm_handler) is utils


def test_a_replica_opens_its_port_for_handle_calls_where_it_is_told_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "_internal_grpc_port = add_port_to_grpc_server(" in inspect.getsource(replica)
    asked: list[str] = []
    monkeypatch.setattr(replica, "add_port_to_grpc_server", lambda _, address: asked.append(address) or 7)
    serve_internals.handle_calls_listen_on("127.0.0.1")
    assert replica.add_port_to_grpc_server(None, "[::]:0") == 7
    assert asked == ["127.0.0.1:0"]


def test_the_controller_tells_address_and_routes_and_shuts_down() -> None:
    assert "raise_if_no_controller_running" in inspect.signature(context._get_global_client).parameters
    assert isinstance(client.ServeControllerClient.http_config, property)
    assert callable(client.ServeControllerClient.get_serve_details)
    assert "graceful_shutdown" in dir(controller.ServeController)
    assert "list_deployments_internal" in dir(controller.ServeController)
    assert "deployer_job_id" in inspect.signature(deployment_info.DeploymentInfo).parameters
    assert "self._controller: Any = controller" in inspect.getsource(client.ServeControllerClient)
    assert constants.SERVE_CONTROLLER_NAME and constants.SERVE_NAMESPACE


def test_a_proxy_may_take_as_long_to_be_ready_as_serve_waits_for_it(tmp_path: Path) -> None:
    name = "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"
    assert f'"{name}"' in inspect.getsource(constants)
    assert "PROXY_READY_CHECK_TIMEOUT_S" in inspect.getsource(proxy_state)
    a_check = float(serve_environment(HttpSettings(), tmp_path)[name])
    assert constants.PROXY_HEALTH_CHECK_UNHEALTHY_THRESHOLD * a_check >= constants.HTTP_PROXY_TIMEOUT


def test_each_port_of_a_deployment_is_its_own(tmp_path: Path) -> None:
    """Serve lets the fallback proxies of two deployments on one host share a port: each would answer for both."""
    names = set(
        re.findall(r'"(RAY_SERVE_(?:HAPROXY|FALLBACK|DIRECT)_(?!\w*GRPC)\w*_PORT)"', inspect.getsource(constants))
    )
    assert len(names) == 5
    environments = [serve_environment(HttpSettings(), tmp_path) for _ in range(20)]
    drawn = [{name: environment[name] for name in names} for environment in environments]
    assert all(len(set(ports.values())) == 5 for ports in drawn)
    assert all(len({ports[name] for ports in drawn}) > 1 for name in names)


def test_nobody_else_opens_rays_private_rooms() -> None:
    from tests.test_layering import PACKAGE, imported, package_files

    private = [
        f"{path.relative_to(PACKAGE)}:{line}: {module}"
        for path in package_files()
        for line, module in imported(path)
        if module.startswith("ray.") and ("_private" in module or "._" in module) and path.name != "serve_internals.py"
    ]
    assert private == []


def test_rays_token_is_told_where_ray_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "5ecret")
    try:
        for mode, expected in (("token", "5ecret"), ("disabled", "")):
            monkeypatch.setenv("RAY_AUTH_MODE", mode)
            reset_auth_token_state()
            assert serve_internals.cluster_token() == expected
    finally:
        monkeypatch.undo()
        reset_auth_token_state()
