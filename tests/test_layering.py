"""Who may include and import whom, among the rooms that docs/architecture.md describes.

A third table gives each third-party library its one home. The last test runs Python: a serving
process loads neither torch nor transformers.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "rtp_llm"

# room: the rooms that its files may include, besides their own
INCLUDES = {
    "tensor": set(),
    "device": {"tensor"},
    "kv": {"tensor", "device"},
    "handover": {"kv"},
    "model": {"tensor", "device", "kv"},
    "transfer": {"tensor", "device", "kv", "handover"},
    "engine": {"tensor", "device", "kv", "handover", "model", "transfer"},
    "bindings": {"tensor", "device", "kv", "handover", "model", "transfer", "engine"},
}

# header: the directories of csrc that may include it
INCLUDE_HOMES = {
    r"(cuda|cublas|cudnn|nccl|cutlass|cute/|nvrtc|nvtx)": ("device/cuda",),
    r"(ucp|uct|ucs|ucm)/": ("transfer",),
    r"(pybind11/|Python\.h)": ("bindings",),
}

NOUNS = {"errors", "config", "sampling_params", "request", "metrics", "lasting_task", "within", "tracing", "pool_state"}
BELOW_ENGINE = NOUNS | {"wire", "model", "host_memory", "prefix"}
BELOW_WORKER = BELOW_ENGINE | {"engine", "loaded_weights", "autoscaling"}
BELOW_POOLS = BELOW_WORKER | {"worker", "directory", "serve_internals", "replica"}
NATIVE = {"_native", "_engine"}

# room: the rooms that its modules may import, besides their own. The nouns all raise `errors`.
IMPORTS = {
    "errors": set(),
    "hub_cache": {"errors"},
    "config": {"errors", "hub_cache"},
    "sampling_params": {"errors"},
    "request": {"errors", "sampling_params"},
    "metrics": {"errors"},
    "tracing": {"errors", "config"},
    "lasting_task": {"errors"},
    "within": set(),
    "pool_state": {"config"},
    "host_memory": set(),
    "prefix": NATIVE,
    "autoscaling": {"config"},
    "serve_internals": set(),
    "replica": {"config", "serve_internals"},
    "wire": NOUNS,
    "model": NOUNS,
    "loaded_weights": BELOW_ENGINE | NATIVE,
    "engine": BELOW_ENGINE | NATIVE | {"loaded_weights"},
    "vllm_arguments": {"errors", "sampling_params"},
    "llm": BELOW_WORKER | {"vllm_arguments"},
    "rtp_variables": {"errors", "config", "model"},
    "model_factory": {"errors", "config", "model", "llm", "rtp_variables"},
    "pipeline": NOUNS | {"model", "llm", "model_factory", "router"},  # its raw requests' fields
    "start_server": {"errors", "cli", "rtp_variables"},
    "bench": BELOW_WORKER | NATIVE,
    "worker": BELOW_WORKER | NATIVE,
    "directory": NOUNS,
    "pool": BELOW_POOLS,
    "prefill": BELOW_POOLS | {"pool"},
    "decode": BELOW_POOLS | {"pool"},
    "router": NOUNS | {"wire", "model", "directory", "replica", "prefix", "autoscaling"},
    "simulation": NOUNS | {"router", "autoscaling", "load"},
    "app": BELOW_POOLS | {"prefill", "decode", "router", "http_client"},
    "http_client": {"errors"},
    "chat": NOUNS | {"http_client"},
    "top": {"errors", "http_client", "metrics"},
    "load": {"errors", "http_client"},
    "cli": BELOW_POOLS
    | {"http_client", "prefill", "decode", "router", "llm", "app", "chat", "top", "bench", "load", "simulation"},
    "_native": {"_engine"},
    "__init__": {"engine", "llm", "sampling_params"},  # on first use
    "__main__": {"cli"},
}

# distribution's module: the rooms that may import it
IMPORT_HOMES = {
    "ray": {"directory", "serve_internals", "replica", "autoscaling", "pool", "prefill", "decode", "router", "app"},
    "aiohttp": {"load"},
    "matplotlib": {"load", "simulation"},  # extra `plot`
    "grpc": {"wire"},
    "google": {"wire"},
    "fastapi": {"router"},
    "starlette": {"router"},
    "uvicorn": {"router"},
    "pydantic": {"config", "router"},
    "yaml": {"config", "cli"},
    "prometheus_client": {"metrics"},
    "opentelemetry": {"tracing"},  # extra `otel`
    "safetensors": {"model"},
    "tokenizers": {"model"},
    "jinja2": {"model"},
    "libucx": {"_native"},
    "numpy": {"model"},
    "torch": {"model"},  # extra `hf`: .bin files
    "transformers": {"model"},  # extra `hf`: slow tokenizers
}


def included(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if found := re.match(r'\s*#\s*include\s*[<"]([^>"]+)[>"]', line):
            yield number, found.group(1)


def csrc_files() -> list[Path]:
    return sorted(path for path in CSRC.rglob("*") if path.suffix in {".h", ".cc", ".cu", ".cuh", ".inc"})


def test_every_csrc_file_lies_in_a_room_of_the_table() -> None:
    strays = [str(path.relative_to(ROOT)) for path in csrc_files() if path.relative_to(CSRC).parts[0] not in INCLUDES]
    assert strays == []


def test_csrc_rooms_include_only_what_the_table_allows() -> None:
    broken = []
    for path in csrc_files():
        room = path.relative_to(CSRC).parts[0]
        for line, header in included(path):
            target = header.split("/")[0]
            if target in INCLUDES and target != room and target not in INCLUDES[room]:
                broken.append(f"{path.relative_to(ROOT)}:{line}: {room} may not include {header}")
    assert broken == []


def test_device_interfaces_do_not_include_a_backend() -> None:
    broken = []
    for path in csrc_files():
        home = path.relative_to(CSRC).parent.as_posix()
        for line, header in included(path):
            backend = re.match(r"device/(cpu|cuda)/", header)
            if backend and not home.startswith(f"device/{backend.group(1)}"):
                broken.append(f"{path.relative_to(ROOT)}:{line}: {header} belongs to its backend")
    assert broken == []


def test_csrc_third_parties_have_one_home() -> None:
    broken = []
    for path in csrc_files():
        home = path.relative_to(CSRC).parent.as_posix()
        for line, header in included(path):
            for pattern, homes in INCLUDE_HOMES.items():
                own = header.split("/")[0] in INCLUDES
                if not own and re.match(pattern, header) and not home.startswith(homes):
                    broken.append(f"{path.relative_to(ROOT)}:{line}: {header} belongs to {' '.join(homes)}")
    assert broken == []


def package_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of every import anywhere in the file; `from a import b` gives a.b."""
    package = ["rtp_llm", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def test_every_python_module_lies_in_a_room_of_the_table() -> None:
    strays = [str(path.relative_to(ROOT)) for path in package_files() if room_of(path) not in IMPORTS]
    assert strays == []


def test_python_rooms_import_only_what_the_table_allows() -> None:
    broken = []
    for path in package_files():
        room = room_of(path)
        for line, module in imported(path):
            parts = module.split(".")
            if parts[0] != "rtp_llm" or len(parts) < 2 or parts[1] not in IMPORTS.keys() | NATIVE:
                continue
            if parts[1] != room and parts[1] not in IMPORTS[room]:
                broken.append(f"{path.relative_to(ROOT)}:{line}: {room} may not import {module}")
    assert broken == []


def test_an_answers_text_is_made_in_one_place_for_http_and_llm() -> None:
    """AnswerText; what it is made of, whole characters and stop strings, is the model room's own."""
    defined = [
        path.relative_to(PACKAGE).as_posix()
        for path in package_files()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and node.name == "AnswerText"
    ]
    assert defined == ["model/answer_text.py"]
    called = {
        room_of(path)
        for path in package_files()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "AnswerText"
    }
    assert called == {"router", "llm"}
    parts = ("rtp_llm.model.detokenizer", "rtp_llm.model.stop_strings")
    users = {room_of(path) for path in package_files() for _, module in imported(path) if module.startswith(parts)}
    assert users == {"model"}


def test_python_third_parties_have_one_home() -> None:
    broken = []
    for path in package_files():
        for line, module in imported(path):
            homes = IMPORT_HOMES.get(module.split(".")[0])
            if homes is not None and room_of(path) not in homes:
                broken.append(f"{path.relative_to(ROOT)}:{line}: {module} belongs to {' '.join(sorted(homes))}")
    assert broken == []


def test_in_the_router_messages_are_read_at_the_fleets_edge_alone() -> None:
    homes = {
        path.name
        for path in (PACKAGE / "router").glob("*.py")
        for _, module in imported(path)
        if module.startswith("rtp_llm.wire.v1")
    }
    assert homes == {"fleet.py"}


@pytest.mark.parametrize("table", [INCLUDES, IMPORTS], ids=["csrc", "rtp_llm"])
def test_the_tables_are_free_of_rings(table: dict[str, set[str]]) -> None:
    left = {room: set(allowed) for room, allowed in table.items()}
    while free := [room for room, allowed in left.items() if not allowed & left.keys()]:
        for room in free:
            del left[room]
    assert left == {}


def test_a_serving_process_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, rtp_llm.engine, rtp_llm.worker, rtp_llm.model\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"
