"""The package as a whole: its public names, its version, where it finds the native engine."""

import importlib
import os
import re
import runpy
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import pytest

import rtp_llm

ROOT = Path(__file__).resolve().parent.parent


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=env)


def test_importing_the_package_loads_no_native_code() -> None:
    done = run("import sys, rtp_llm; print([m for m in sys.modules if m.endswith('_engine') or m == 'libucx'])")
    assert done.stdout.strip() == "[]", done.stderr


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="LLLM"):
        _ = rtp_llm.LLLM


def test_the_public_names_come_from_their_homes() -> None:
    from rtp_llm.sampling_params import SamplingParams

    assert rtp_llm.SamplingParams is SamplingParams


def test_the_installed_version_is_the_one_in_the_source() -> None:
    try:
        installed = version("rtp-llm")
    except PackageNotFoundError:
        pytest.skip("used from the source tree, not installed")
    assert installed == rtp_llm.__version__


def test_a_native_dir_without_an_engine_is_named(tmp_path: Path) -> None:
    done = run("import rtp_llm._native", RTP_LLM_NATIVE_DIR=str(tmp_path))
    assert done.returncode != 0
    assert f"RTP_LLM_NATIVE_DIR={tmp_path} holds no _engine extension module" in done.stderr


def test_sources_without_an_engine_say_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import_module = importlib.import_module

    def missing(name: str, package: str | None = None) -> ModuleType:
        if name == "rtp_llm._engine":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return import_module(name, package)

    monkeypatch.delenv("RTP_LLM_NATIVE_DIR", raising=False)
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=r"sources without a built engine\. `make setup` builds it"):
        runpy.run_path(str(ROOT / "rtp_llm" / "_native.py"))


def test_constraints_are_resolved_for_each_python_that_is_supported() -> None:
    supported = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text())
    pinned_for = (ROOT / "constraints.txt").read_text().partition("\n")[0]
    assert re.findall(r"3\.\d+", pinned_for) == supported
