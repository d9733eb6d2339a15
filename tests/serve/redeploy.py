"""Deploys the application anew, with other settings, as `serve deploy` does with an edited file: declared, so that Serve
changes only what differs. In a process of its own that joins the deployment's Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.serve.deployment import APPLICATION, Deployment, environment

# What `rtp-llm serve` sets for its own Ray, as far as a driver must agree on it.
JOIN = {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_SERVE_ENABLE_HA_PROXY": "1"}
CODE = """
import json, sys
import ray
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

ray.init(logging_level="WARNING", log_to_driver=False)
declared, waits = map(json.loads, sys.argv[1:])
_get_global_client().deploy_apps(ServeDeploySchema(applications=[declared]), _blocking=waits)
"""


def redeploy(
    deployment: Deployment,
    args: dict[str, Any],
    *,
    user_config: dict[str, Any] | None = None,
    waits: bool = True,
    **replicas: int,
) -> None:
    """Returns when the application runs with these sections of the config tree, these settings of routers and these sizes of
    pools, and what was replaced has drained, for which Serve waits 60 s; without `waits` at once."""
    declared = {
        "name": APPLICATION,
        "route_prefix": "/",
        "import_path": "rtp_llm.app:build",
        "args": args,
        "deployments": [
            *({"name": name, "num_replicas": number} for name, number in replicas.items()),
            *([] if user_config is None else [{"name": "router", "user_config": user_config}]),
        ],
    }
    run = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(declared), json.dumps(waits)],
        env=environment() | JOIN | {"RAY_ADDRESS": deployment.ray_address},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
