"""Every file of deploy/ as whoever reads it would: Ray's cluster launcher, Serve, our config tree, bash."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from rtp_llm import app
from rtp_llm.config import Pool, load_config

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file())


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def is_application(path: Path) -> bool:
    return path.suffix == ".yaml" and "applications" in read(path)


def is_cluster(path: Path) -> bool:
    return path.suffix == ".yaml" and "provider" in read(path)


APPLICATIONS = [path for path in FILES if is_application(path)]
CLUSTERS = [path for path in FILES if is_cluster(path)]
SCRIPTS = [path for path in FILES if path.suffix == ".sh"]


def test_every_file_has_a_reader_here() -> None:
    assert set(FILES) == {*APPLICATIONS, *CLUSTERS, *SCRIPTS}
    assert APPLICATIONS and CLUSTERS and SCRIPTS


@pytest.mark.parametrize("path", APPLICATIONS, ids=lambda path: path.name)
def test_serve_takes_an_applications_file_and_its_args_are_settings(path: Path) -> None:
    deployed = ServeDeploySchema.model_validate(read(path))
    for application in deployed.applications:
        assert application.import_path == "rtp_llm.app:build"
        assert callable(app.build)
        config = load_config(overrides=app._paths(application.args), environ={})
        assert "http" not in application.args  # http_options says it
        for pool in Pool:
            assert config.pool(pool).replicas > 0


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
def test_the_cluster_launcher_takes_a_clusters_file(path: Path) -> None:
    """As `ray up` does: first it fills in what is missing, then its schema must hold."""
    config = prepare_config(read(path))
    validate_config(config)
    [node] = config["available_node_types"].values()
    assert node["min_workers"] == len(config["provider"]["worker_ips"])
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "RAY_enable_autoscaler_v2=0" in commands[-1]  # v2 would count the head as a worker


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_bash_takes_a_script(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)


def test_pools_that_a_file_pins_are_what_its_cluster_offers() -> None:
    """two_hosts.yaml asks for the resources that local.yaml's nodes are started with."""
    cluster = read(DEPLOY / "ray" / "local.yaml")
    offered = " ".join([*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]])
    [application] = read(DEPLOY / "ray" / "two_hosts.yaml")["applications"]
    for pool in Pool:
        for name in application["args"][pool.value]["resources"]:
            assert f'"{name}": 1' in offered
