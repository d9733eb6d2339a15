"""Regenerates constraints.txt: what pip resolves today, for each supported Python.

    python tools/constraints.py python3.10 python3.11 python3.12 python3.13 python3.14 > constraints.txt

Versions on which all interpreters agree are written plainly, the others with a marker. torch and
what comes with it is left out: `make test-parity TORCH_SPEC=…` chooses its build.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FREE = re.compile(r"^(torch|triton|nvidia-.*|cuda-.*|rtp-llm)$")


def normalized(name: str) -> str:
    """The name as package indexes spell it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def resolve(python: str) -> tuple[str, dict[str, str]]:
    """Ask pip of `python`. Returns ("3.12", {name: version})."""
    with tempfile.TemporaryDirectory() as directory:
        venv, report = Path(directory) / "venv", Path(directory) / "report.json"
        subprocess.run([python, "-m", "venv", venv], check=True)
        pip = [str(venv / "bin/python"), "-m", "pip"]
        build = ["pip", "scikit-build-core", "pybind11", "libucx-cu12", "cmake", "ninja"]
        subprocess.run([*pip, "install", "-q", *build], check=True)
        subprocess.run(
            [*pip, "install", "-q", "--dry-run", "--ignore-installed", "--report", str(report)]
            + ["--no-build-isolation", f"{ROOT}[hf,test,dev]", *build],
            check=True,
        )
        found = json.loads(report.read_text())
    version = ".".join(found["environment"]["python_full_version"].split(".")[:2])
    packages = (item["metadata"] for item in found["install"])
    return version, {normalized(p["name"]): p["version"].split("+")[0] for p in packages}


def main(pythons: list[str]) -> None:
    """Print the merged file to stdout."""
    resolved = dict(resolve(python) for python in pythons)
    versions: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for python, packages in resolved.items():
        for name, version in packages.items():
            versions[name][version].append(python)
    print(f"# Pinned for Python {', '.join(resolved)} on Linux by tools/constraints.py; see there.")
    for name in sorted(versions):
        if FREE.match(name):
            continue
        for version, on in versions[name].items():
            everywhere = len(versions[name]) == 1 and len(on) == len(resolved)
            marker = " or ".join(f'python_version == "{python}"' for python in on)
            print(f"{name}=={version}" + ("" if everywhere else f" ; {marker}"))


if __name__ == "__main__":
    main(sys.argv[1:])
