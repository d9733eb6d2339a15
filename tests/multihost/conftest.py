"""One site a session, with the application of two_hosts.yaml on it: prefill on the head, decode on the worker."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.multihost.documented import commands
from tests.multihost.site import NAMESPACES, TOOLS, Site
from tests.serve.deployment import ROOT

URL = "http://10.0.0.1:8000"
UP_TIMEOUT_S = 420


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = ["root"] * (os.geteuid() != 0) + [tool for tool in TOOLS if shutil.which(tool) is None]
    if not missing and subprocess.run(["unshare", *NAMESPACES, "true"], capture_output=True).returncode != 0:
        missing = ["leave to make namespaces"]
    for item in items:
        if "tests/multihost/" in str(item.path):
            item.add_marker(pytest.mark.timeout(1200))
            if missing:
                item.add_marker(pytest.mark.skip(reason=f"not here: {', '.join(missing)}"))


class Cluster:
    """The lines of docs/deployment.md's section on several hosts, run on the admin's machine in the checkout."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.head = site.start_host("head", "10.0.0.1")
        self.worker = site.start_host("worker", "10.0.0.2")
        self._start, self._stop = commands("Several hosts")

    def start(self) -> None:
        for command in self._start:
            self.site.admin.run(command, UP_TIMEOUT_S, cwd=str(ROOT))

    def stop(self) -> None:
        for command in self._stop:
            self.site.admin.run(command, UP_TIMEOUT_S, cwd=str(ROOT))

    def start_worker_again(self) -> None:
        self.worker = self.site.start_host("worker", "10.0.0.2")

    def logs(self) -> str:
        """The ends of what our processes have logged."""
        return "\n".join(
            host.run(
                "tail -n 40 /tmp/ray/session_latest/logs/serve/*rtp-llm* /tmp/ray/session_latest/logs/monitor.log || true"
            )
            for host in (self.head, self.worker)
            if host.is_running
        )


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    assert list((ROOT / "dist").glob("*.whl")), "no wheel in dist/: make wheel"
    with Site.running() as site, site.network():
        found = Cluster(site)
        found.start()
        yield found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.failed and (found := getattr(item, "funcargs", {}).get("cluster")) is not None:
        report.sections.append(("the hosts' logs", found.logs()))
    return report
