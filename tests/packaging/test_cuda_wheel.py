"""The wheel rtp-llm-cuda, built by `make check-cuda`, which names it in RTP_CUDA_WHEEL."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import rtp_llm
from rtp_llm._native import _engine
from tests.build_dir import ROOT

LIBRARY = "rtp_llm/lib/librtp_cuda.so"
FATBIN = struct.pack("<I", 0xBA55ED50)  # begins each container of what nvcc has compiled


@pytest.fixture(scope="module")
def wheel() -> zipfile.ZipFile:
    if not (path := os.environ.get("RTP_CUDA_WHEEL")):
        pytest.skip("RTP_CUDA_WHEEL names no wheel: `make check-cuda` builds one")
    return zipfile.ZipFile(ROOT / path)


@pytest.fixture(scope="module")
def library(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(wheel.extract(LIBRARY, tmp_path_factory.mktemp("wheel")))


def output_of(*command: str | Path) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_it_adds_one_library_beside_the_cpus_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    files = [name for name in wheel.namelist() if ".dist-info/" not in name]
    assert files == [LIBRARY]


def test_it_is_for_every_python_and_wants_the_package_of_the_same_version(wheel: zipfile.ZipFile) -> None:
    assert wheel.filename is not None
    assert re.fullmatch(
        rf"rtp_llm_cuda-{re.escape(rtp_llm.__version__)}-py3-none-linux_\w+\.whl", Path(wheel.filename).name
    )
    [name] = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = message_from_bytes(wheel.read(name))
    assert metadata["Name"] == "rtp-llm-cuda"
    assert metadata.get_all("Requires-Dist") == [f"rtp-llm=={rtp_llm.__version__}"]


def images(library: bytes) -> set[tuple[str, int]]:
    """("ptx" or "code", compute capability) of what nvcc put into a library: containers of entries, each with a header."""
    found = set()
    start = -1
    while (start := library.find(FATBIN, start + 1)) >= 0:
        _, version, header, size = struct.unpack_from("<IHHQ", library, start)
        if version != 1:
            continue
        entry, end = start + header, start + header + size
        while entry < end:
            kind, _, header, size = struct.unpack_from("<HHIQ", library, entry)
            found.add(({1: "ptx", 2: "code"}[kind], *struct.unpack_from("<I", library, entry + 28)))
            entry += header + size
    return found


def test_it_has_code_for_each_gpu_and_ptx_for_later_ones(library: Path) -> None:
    assert images(library.read_bytes()) == {*(("code", gpu) for gpu in (80, 86, 89, 90, 100)), ("ptx", 100)}
    assert b"sm_90a" in library.read_bytes()  # which alone has wgmma


def test_it_exports_its_factory_alone_and_needs_no_cuda_library(library: Path) -> None:
    exported = re.findall(r" T (\w+)", output_of("nm", "-D", "--defined-only", library))
    assert exported == ["rtp_device_create"]
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", output_of("readelf", "-d", library))
    assert "librtp_core.so" in needed
    assert not [name for name in needed if re.search("cuda|cublas|cudnn|nv", name)]


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU here")
def test_beside_the_cpus_libraries_it_says_that_there_is_no_gpu(library: Path, tmp_path: Path) -> None:
    package = Path(_engine.__file__).parent
    shutil.copytree(package / "lib", tmp_path / "lib", symlinks=True)
    shutil.copy(_engine.__file__, tmp_path)
    shutil.copy(library, tmp_path / "lib")
    code = "from rtp_llm._native import _engine; _engine.open_device('cuda', num_threads=1, isa='')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "RTP_LLM_NATIVE_DIR": str(tmp_path)},
    )
    assert re.search(r"UnavailableError: backend 'cuda': .*(driver|device).*\(cudaError\w+\)", done.stderr), done.stderr
