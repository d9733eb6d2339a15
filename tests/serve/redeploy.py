"""Deploys the application anew, with other settings, as `serve deploy` with an edited file would: from a process of its own
that joins the deployment's Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.serve.deployment import Deployment, environment

# What `rtp-llm serve` sets for its own Ray, as far as a driver must agree on it.
JOIN = {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_SERVE_ENABLE_HA_PROXY": "1"}
CODE = """
import json, sys
import ray
from ray import serve
from rtp_llm import app

ray.init(logging_level="WARNING", log_to_driver=False)
serve.run(app.build(json.loads(sys.argv[1])), name=app.APPLICATION, route_prefix="/")
"""


def redeploy(deployment: Deployment, **sections: dict[str, Any]) -> None:
    """Returns when what is new serves and what is old has drained."""
    run = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(sections)],
        env=environment() | JOIN | {"RAY_ADDRESS": deployment.ray_address},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
