"""Every file of deploy/ as whoever reads it would: Ray's cluster launcher, Serve, our config tree, bash; Docker's and
Kubernetes' as far as it goes without them."""

import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from rtp_llm import app
from rtp_llm.config import Config, Pool, is_loopback, load_config

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file())
RUN = {
    "local.yaml",
    "one_host.yaml",
    "autoscaled.yaml",
    "two_models.yaml",
    "two_hosts.yaml",
    "nothing.yaml",
    "environment.sh",
    "install.sh",
}
NO_SCHEMA_HERE = {"Dockerfile", "Dockerfile.dockerignore"}


def documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text())) if path.suffix == ".yaml" else []


def having(key: str) -> list[Path]:
    return [path for path in FILES if any(key in document for document in documents(path))]


APPLICATIONS = having("applications")
CLUSTERS = having("provider")
MANIFESTS = having("apiVersion")
SCRIPTS = [path for path in FILES if path.suffix == ".sh"]
DASHBOARDS = [path for path in FILES if path.suffix == ".json"]  # tests/test_metrics.py reads them


def name(path: Path) -> str:
    return path.name


def ray_service(path: Path) -> Any:
    [found] = [document for document in documents(path) if document["kind"] == "RayService"]
    return found


def served(path: Path) -> Any:
    """What Serve is given, by the file itself or inside of a RayService."""
    return documents(path)[0] if path in APPLICATIONS else yaml.safe_load(ray_service(path)["spec"]["serveConfigV2"])


def configs(path: Path) -> list[Config]:
    return [load_config(overrides=app._paths(each["args"]), environ={}) for each in served(path)["applications"]]


def test_every_file_has_a_reader_here() -> None:
    read = {*APPLICATIONS, *CLUSTERS, *MANIFESTS, *SCRIPTS, *DASHBOARDS}
    assert {path.name for path in {*FILES} - read} == NO_SCHEMA_HERE
    assert all((APPLICATIONS, CLUSTERS, MANIFESTS, SCRIPTS))


@pytest.mark.parametrize("path", [*APPLICATIONS, *CLUSTERS, *MANIFESTS, DEPLOY / "Dockerfile"], ids=name)
def test_a_file_that_no_test_runs_says_so(path: Path) -> None:
    """Those that are run: tests/multihost and tests/serve."""
    says = "never run" in path.read_text().lower()
    assert says != (path.name in RUN)


@pytest.mark.parametrize("path", [*APPLICATIONS, *MANIFESTS], ids=name)
def test_serve_takes_an_applications_file_and_its_args_are_settings(path: Path) -> None:
    deployed = ServeDeploySchema.model_validate(served(path))
    for application, config in zip(deployed.applications, configs(path), strict=True):
        assert application.import_path == "rtp_llm.app:build"
        assert app.build(application.args) is not None  # no secret in it, for one
        assert not {"host", "port", "route_prefix"} & application.args.get("http", {}).keys()  # http_options says it
        for pool in Pool:
            assert config.sizes_of(pool).most > 0


@pytest.mark.parametrize("path", [*APPLICATIONS, *MANIFESTS], ids=name)
def test_who_leaves_loopback_says_that_the_network_is_trusted(path: Path) -> None:
    for config in configs(path):
        assert is_loopback(config.transfer.host) or config.transfer.trusted_network
        assert is_loopback(config.worker.host) == is_loopback(config.transfer.host)


@pytest.mark.parametrize("path", APPLICATIONS, ids=name)
def test_a_router_stays_where_the_only_proxy_is(path: Path) -> None:
    for config in configs(path):
        on_head = config.router.resources == {"node:__internal_head__": 0.001}
        assert served(path)["proxy_location"] == "HeadOnly" and on_head != is_loopback(config.worker.host)


def test_autoscaled_pools_are_what_their_file_says() -> None:
    [config] = configs(DEPLOY / "ray" / "autoscaled.yaml")
    assert [config.sizes_of(pool) for pool in Pool] == [(0, 1, 3), (1, 1, 3)]


def test_the_trusted_network_is_said_of_is_that_of_more_than_one_host() -> None:
    [config] = configs(DEPLOY / "ray" / "one_host.yaml")
    assert is_loopback(config.transfer.host) and not config.transfer.trusted_network


@pytest.mark.parametrize("path", CLUSTERS, ids=name)
def test_the_cluster_launcher_takes_a_clusters_file(path: Path) -> None:
    """As `ray up` does: first it fills in what is missing, then its schema must hold."""
    config = prepare_config(*documents(path))
    validate_config(config)
    setup = " ".join(config["setup_commands"])
    assert "install.sh" in setup and "environment.sh" in setup
    for local in config["file_mounts"].values():
        assert local in ("dist", "~/.ray/auth_token") or (ROOT / local).exists()
    assert "~/.ray/auth_token" in config["file_mounts"]


def test_every_local_host_is_started() -> None:
    config = prepare_config(*documents(DEPLOY / "ray" / "local.yaml"))
    [node] = config["available_node_types"].values()
    assert node["min_workers"] == len(config["provider"]["worker_ips"])
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "RAY_enable_autoscaler_v2=0" in commands[-1]  # v2 would count the head as a worker


def test_pools_that_a_file_pins_are_what_its_cluster_offers() -> None:
    """two_hosts.yaml asks for the resources that local.yaml's nodes are started with."""
    [cluster] = documents(DEPLOY / "ray" / "local.yaml")
    offered = " ".join([*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]])
    [config] = configs(DEPLOY / "ray" / "two_hosts.yaml")
    for pool in Pool:
        assert config.pool(pool).resources
        for resource in config.pool(pool).resources:
            assert f'"{resource}": 1' in offered


Nodes = list[tuple[Mapping[str, str], float]]  # labels and CPUs of each


def nodes_of_a_cluster(path: Path) -> Nodes:
    [cluster] = documents(path)
    types = cluster["available_node_types"]
    head = [(types[cluster["head_node_type"]]["labels"], types[cluster["head_node_type"]]["resources"]["CPU"])]
    workers = [(t["labels"], t["resources"]["CPU"]) for t in types.values() for _ in range(t.get("min_workers", 0))]
    assert len(workers) == cluster["max_workers"]
    return head + workers


def nodes_of_a_ray_service(path: Path) -> Nodes:
    cluster = ray_service(path)["spec"]["rayClusterConfig"]

    def node(group: Any) -> tuple[dict[str, str], float]:
        labels = dict(label.split("=") for label in group["rayStartParams"]["labels"].split(","))
        [container] = group["template"]["spec"]["containers"]
        own = group["rayStartParams"].get("num-cpus")
        return labels, float(own if own is not None else container["resources"]["limits"]["cpu"])

    groups = cluster["workerGroupSpecs"]
    return [node(cluster["headGroupSpec"]), *(node(g) for g in groups for _ in range(g["replicas"]))]


CLOUDS = [path for path in CLUSTERS if path.name != "local.yaml"]


@pytest.mark.parametrize("path", [*CLOUDS, *MANIFESTS], ids=name)
def test_labelled_nodes_hold_the_pools_that_ask_for_them(path: Path) -> None:
    nodes, application = (
        (nodes_of_a_cluster(path), DEPLOY / "ray" / "pools.yaml")
        if path in CLOUDS
        else (nodes_of_a_ray_service(path), path)
    )
    [config] = configs(application)
    for pool in Pool:
        settings = config.pool(pool)
        assert settings.label_selector and settings.num_cpus > 0
        fitting = [cpus for labels, cpus in nodes if settings.label_selector.items() <= labels.items()]
        assert sum(int(cpus // settings.num_cpus) for cpus in fitting) >= settings.replicas
        assert config.engine_of(pool).num_threads <= settings.num_cpus


@pytest.mark.parametrize("path", MANIFESTS, ids=name)
def test_a_ray_service_asks_for_a_token_and_for_the_version_of_ray_that_is_installed(path: Path) -> None:
    cluster = ray_service(path)["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["authOptions"] == {"mode": "token"}


def instructions() -> Iterator[tuple[str, str]]:
    for line in (DEPLOY / "Dockerfile").read_text().splitlines():
        if line and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            yield word, rest


def test_the_dockerfile_copies_what_is_there_and_installs_by_the_script() -> None:
    stages: list[str] = []
    installed = set()
    for word, rest in instructions():
        assert word in {"FROM", "COPY", "RUN", "ENV"}
        if word == "FROM":
            found = re.fullmatch(r"\S+:\S+ AS (\S+)", rest)
            assert found is not None
            stages.append(found.group(1))
        elif word == "COPY":
            stage = re.match(r"--from=(\S+) ", rest)
            assert stage.group(1) in stages[:-1] if stage else (ROOT / rest.split()[0]).exists()
        elif word == "RUN":
            subprocess.run(["bash", "-n"], input=rest, text=True, check=True)
            if "install.sh" in rest:
                installed.add(stages[-1])
    assert installed == {"cpu", "cuda"}


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_bash_takes_a_script(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)


def test_install_sh_says_how_it_is_called() -> None:
    said = subprocess.run(["bash", DEPLOY / "install.sh"], capture_output=True, text=True)
    assert said.returncode == 2 and said.stderr.startswith("Installs the package on a node: install.sh REQUIREMENT...")


def test_the_documented_commands_name_files_that_are_there() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text()
    named = set(
        re.findall(r"\bdeploy/[\w./-]+\.(?:yaml|sh)", "".join(re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)))
    )
    assert named and all((ROOT / each).exists() for each in named)
