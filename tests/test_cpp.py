"""Runs the C++ tests: one test here per source file of tests/cpp."""

import os
import subprocess

import pytest

from tests.build_dir import ROOT, build_dir


def source_files() -> list[tuple[str, str]]:
    """(room, file) of every tests/cpp/<room>/<file>_test.cc, without the suffix .cc."""
    paths = sorted((ROOT / "tests" / "cpp").glob("*/*_test.cc"))
    return [(path.parent.name, path.stem) for path in paths]


def run(room: str, file: str, environment: dict[str, str]) -> None:
    binary = build_dir() / "tests" / f"{room}_test"
    if not binary.exists() and "RTP_BUILD_DIR" not in os.environ:
        pytest.skip(f"{binary} is not built")
    ended = subprocess.run(
        [binary, f"{file}."], capture_output=True, text=True, errors="replace", env=os.environ | environment
    )
    print(ended.stdout)
    assert ended.returncode == 0, f"{binary.name} {file}. exited with {ended.returncode}\n{ended.stdout}{ended.stderr}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("room", "file"), source_files(), ids=lambda part: part)
def test_cpp(room: str, file: str) -> None:
    run(room, file, {})


@pytest.mark.timeout(600)
@pytest.mark.parametrize("file", ["engine_test", "exactness_test", "handover_test"])
def test_the_engines_promises_hold_on_a_device_that_runs_behind_the_host(file: str) -> None:
    run("engine", file, {"RTP_LLM_QUEUED_DEVICE": "7"})


def test_a_decode_step_allocates_nothing() -> None:
    binary = build_dir() / "tests" / "engine_step_calls"
    if not binary.exists() and "RTP_BUILD_DIR" not in os.environ:
        pytest.skip(f"{binary} is not built")
    ended = subprocess.run([binary], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_seeded_schedules_a_step_ahead() -> None:
    run("engine", "step_ahead_test", {"RTP_TEST_SCHEDULES": "1000"})
