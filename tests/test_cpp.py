"""Runs the C++ tests: one test here per source file of tests/cpp.

The binaries come from RTP_BUILD_DIR (`make test` sets it), else from the build tree that
RTP_LLM_NATIVE_DIR points into, else from build/dev.
"""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def build_dir() -> Path:
    if chosen := os.environ.get("RTP_BUILD_DIR"):
        return ROOT / chosen
    if native := os.environ.get("RTP_LLM_NATIVE_DIR"):
        return Path(native).resolve().parent
    return ROOT / "build" / "dev"


def source_files() -> list[tuple[str, str]]:
    """(room, file) of every tests/cpp/<room>/<file>_test.cc, without the suffix .cc."""
    paths = sorted((ROOT / "tests" / "cpp").glob("*/*_test.cc"))
    return [(path.parent.name, path.stem) for path in paths]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("room", "file"), source_files(), ids=lambda part: part)
def test_cpp(room: str, file: str) -> None:
    binary = build_dir() / "tests" / f"{room}_test"
    if not binary.exists() and "RTP_BUILD_DIR" not in os.environ:
        pytest.skip(f"{binary} is not built")
    run = subprocess.run([binary, f"{file}."], capture_output=True, text=True, errors="replace")
    print(run.stdout)
    assert run.returncode == 0, f"{binary.name} {file}. exited with {run.returncode}\n{run.stdout}{run.stderr}"
