"""What all tests share: marks, their time limits, what this machine cannot run, and what may run at the same time."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.build_dir import build_dir
from tests.turns import Turns

MARKS = {
    "alone": "measures time: nothing else runs meanwhile",
    "slow": "takes more than some seconds; `make test` leaves it out, `make test-slow` runs it",
    "gpu": "needs an NVIDIA GPU",
    "parity": "compares live with transformers; `make test-parity` runs it",
    "multihost": "makes hosts of namespaces, as root; `make test-multihost` runs it",
}
SLOW_TIMEOUT_S = 900
HERE = Path(__file__).parent
ON_RAY = ("tests/serve/", "tests/test_directory.py")


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in MARKS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT_S))
        if item.get_closest_marker("gpu") and not Path("/dev/nvidiactl").exists():
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here"))
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: not item.nodeid.startswith(ON_RAY))  # the longest share first


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`: all tests on Ray go to one process, those of another file to one, C++ tests wherever there is time."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith(ON_RAY):
                return "Ray"
            return nodeid if nodeid.startswith("tests/test_cpp.py") else nodeid.partition("::")[0]

    config.option.loadscopereorder = False
    return Scheduler(config, log)


TURNS = Turns(entrance=Path(__file__), room=HERE)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Outside of the test's time limit."""
    TURNS.begin(alone=item.get_closest_marker("alone") is not None)
    try:
        return (yield)
    finally:
        TURNS.end(next_alone=nextitem is not None and nextitem.get_closest_marker("alone") is not None)


@pytest.fixture(scope="session")
def cached_block() -> ModuleType:
    """read(engine, hash) and write(engine, hash, bytes): tests/bindings/cached_block.cc."""
    return _module_of_the_tests("cached_block")


@pytest.fixture(scope="session")
def prefix_cache() -> ModuleType:
    """BlockPool, without an engine: tests/bindings/prefix_cache.cc."""
    return _module_of_the_tests("prefix_cache")


def _module_of_the_tests(name: str) -> ModuleType:
    found = sorted((build_dir() / "tests").glob(f"{name}.*.so"))
    if not found and "RTP_BUILD_DIR" not in os.environ:
        pytest.skip(f"{build_dir()}/tests/{name} is not built")
    [path] = found
    import rtp_llm._native  # noqa: F401  whose types the module takes

    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
