"""Regenerates constraints.txt: what uv resolves for each supported Python, from binary wheels alone.

    python tools/constraints.py [--upgrade] 3.10 3.11 3.12 3.13 3.14 > constraints.txt.new

No interpreter but the one that runs this is needed. What constraints.txt pins is kept where it still resolves, unless
`--upgrade` is given. Versions on which all Pythons agree are written plainly, the others with a marker. torch and what
comes with it alone is left out: `make test-parity TORCH_SPEC=…` chooses its build.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINS = ROOT / "constraints.txt"
BUILD = ["pip", "scikit-build-core", "pybind11", "libucx-cu12", "cmake", "ninja"]
FREE = re.compile(r"^(torch|triton|nvidia-.*|cuda-.*)$")


def resolve(python: str, *, upgrade: bool) -> dict[str, str]:
    """Name → version of all that `python` ("3.12") needs to build, run, test and check the package."""
    with tempfile.TemporaryDirectory() as directory:
        build, out = Path(directory) / "build.in", Path(directory) / "constraints.txt"
        build.write_text("\n".join(BUILD))
        if not upgrade:
            out.write_text(PINS.read_text())  # uv prefers what its output file holds
        subprocess.run(
            [sys.executable, "-m", "uv", "pip", "compile", "-q", "--no-header", "--no-annotate", "--no-strip-extras"]
            + ["--python-version", python, "--only-binary", ":all:", "--all-extras", "-o", str(out)]
            + [str(ROOT / "pyproject.toml"), str(build)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        found = re.findall(r"^([a-z0-9-]+)(?:\[.*\])?==([^\s+]+)", out.read_text(), re.M)
    return {name: version for name, version in found if not FREE.match(name)}


def main() -> None:
    """Print the merged file to stdout."""
    parser = argparse.ArgumentParser(description="Regenerates constraints.txt, to stdout.")
    parser.add_argument("pythons", nargs="+", help="3.10 3.11 …")
    parser.add_argument("--upgrade", action="store_true", help="the newest of everything")
    options = parser.parse_args()
    versions: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for python in options.pythons:
        for name, version in resolve(python, upgrade=options.upgrade).items():
            versions[name][version].append(python)
    print(f"# Pinned for Python {', '.join(options.pythons)} on Linux by tools/constraints.py; see there.")
    for name in sorted(versions):
        for version, on in versions[name].items():
            everywhere = len(on) == len(options.pythons)
            marker = " or ".join(f'python_version == "{python}"' for python in on)
            print(f"{name}=={version}" + ("" if everywhere else f" ; {marker}"))


if __name__ == "__main__":
    main()
