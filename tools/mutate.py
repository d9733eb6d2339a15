#!/usr/bin/env python
"""Mutation testing of the native half: do its tests notice when a line is wrong?

    .venv/bin/python tools/mutate.py [--seed 1] [--mutants 20] [--report FILE] csrc/kv csrc/engine/scheduler.cc

Draws mutants of the given files (of a directory: its *.cc), as many from each room, builds each in a copy of the
tree (build/mutate) and runs the C++ tests: the room's own, then the others'; `--also` adds Python tests. A mutant is
killed when a test fails, crashes or hangs, also when given more time; one that does not compile counts as neither.
Each line of a report can be asked again: with a report that exists, what it calls survived or has not judged yet is
judged, nothing is drawn.
"""

import argparse
import contextlib
import json
import os
import re
import resource
import select
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict
from pathlib import Path

from mutations import Mutant, draw

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = "timeout"
MAX_ADDRESS_SPACE = 8 << 30  # of a test process: a mutant may allocate for ever


class Tree:
    """A copy of the checkout and its build, kept between runs."""

    def __init__(self, directory: Path, jobs: int, bindings: bool) -> None:
        self.source, self.build = directory / "tree", directory / "build"
        self.jobs = jobs
        self.programs = Path(sys.executable).parent
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.split("\n")
        files = {name for name in listed if (ROOT / name).is_file()}
        for old in [path for path in self.source.rglob("*") if path.is_file()]:
            if str(old.relative_to(self.source)) not in files:
                old.unlink()
        for name in files:
            self.write(name, (ROOT / name).read_bytes())
            shutil.copymode(ROOT / name, self.source / name)
        options = ["RTP_BUILD_TESTS=ON", "RTP_CPU_ISAS=generic", f"RTP_BUILD_BINDINGS={'ON' if bindings else 'OFF'}"]
        options += ["CMAKE_BUILD_TYPE=Mutate", "CMAKE_CXX_FLAGS_MUTATE=-O1", "CMAKE_LINK_DEPENDS_NO_SHARED=ON"]
        options += [f"Python_EXECUTABLE={sys.executable}", f"CMAKE_MAKE_PROGRAM={self.programs / 'ninja'}"]
        cmake = [str(self.programs / "cmake"), f"-S{self.source}", f"-B{self.build}", "-GNinja"]
        subprocess.run([*cmake, *(f"-D{option}" for option in options)], check=True, stdout=subprocess.DEVNULL)
        if error := self.compile_error():
            sys.exit(f"the tree does not build: {error}")
        self.tests = sorted((self.build / "tests").glob("*_test"))

    def write(self, name: str, content: bytes) -> None:
        path = self.source / name
        if not path.exists() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def compile_error(self) -> str:
        """Builds; returns the compiler's or the linker's first error. Exits if the build failed for another reason."""
        ninja = [str(self.programs / "ninja"), "-C", str(self.build), "-j", str(self.jobs)]
        ran = subprocess.run(ninja, capture_output=True, text=True)
        if ran.returncode == 0:
            return ""
        error = re.search(r"(?<!fatal )(?<!compiler )error: .*|undefined reference.*", ran.stdout)
        return error[0] if error else sys.exit(f"the build failed:\n{ran.stdout[-2000:]}{ran.stderr}")


def killer(command: list[str], tree: Tree, longest_s: float) -> tuple[str, float]:
    """Runs tests until the first failure, or until one takes longer than `longest_s`.

    Returns what killed the mutant, empty if nothing did, and how long the longest test took.
    """
    native = {"RTP_LLM_NATIVE_DIR": str(tree.build / "rtp_llm"), "RTP_BUILD_DIR": str(tree.build)}
    native |= {"RTP_LLM_ISA": "generic", "PYTHONPATH": str(tree.source)}
    process = subprocess.Popen(
        command,
        cwd=tree.source,
        env=os.environ | native,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,  # select sees what there is to read
        start_new_session=True,
        preexec_fn=None if "pytest" in command else limit_memory,
    )
    assert process.stdout is not None
    last, took_s, begin, killed = Path(command[0]).name, 0.0, time.monotonic(), ""
    while not killed:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, begin + longest_s - time.monotonic()))
        if not ready:
            killed = f"{TIMEOUT} after {last}"
        elif not (line := process.stdout.readline().decode(errors="replace")):
            break
        elif re.match(r"ok  |FAIL|tests/", line):  # of tests/cpp/main.cc; of pytest
            last = line.split()[1]
            took_s, begin = max(took_s, time.monotonic() - begin), time.monotonic()
            killed = last if line.startswith("FAIL") else ""
    if not killed and (status := process.wait()):
        killed = f"exit {status} after {last}"
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # and its children
    process.wait()
    return killed, max(took_s, time.monotonic() - begin)


def limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_SPACE, MAX_ADDRESS_SPACE))


def plain_times(tree: Tree, also: str) -> dict[str, float]:
    """Each test command, the quickest first, and its longest test on the tree as it is. Exits if one fails."""
    commands = [shlex.quote(str(test)) for test in tree.tests]
    if also:
        commands.append(f"{shlex.quote(sys.executable)} -m pytest -x -v {also}")
    whole_s, longest_s = {}, {}
    for command in commands:
        begin = time.monotonic()
        killed, longest_s[command] = killer(shlex.split(command), tree, 600)
        whole_s[command] = time.monotonic() - begin
        if killed:
            sys.exit(f"the tree as it is fails: {command}: {killed}")
    return {command: longest_s[command] for command in sorted(commands, key=whole_s.__getitem__)}


def judge(mutant: Mutant, tree: Tree, longest_s: dict[str, float]) -> None:
    text = (tree.source / mutant.file).read_text()
    places = [m.start() for m in re.finditer(f"^{re.escape(mutant.before)}$", text, re.M)]
    if not places:
        mutant.verdict = "gone"
        return
    place = min(places, key=lambda at: abs(text.count("\n", 0, at) + 1 - mutant.line))
    mutant.line = text.count("\n", 0, place) + 1
    tree.write(mutant.file, (text[:place] + mutant.after + text[place + len(mutant.before) :]).encode())
    mutant.verdict, mutant.by = "invalid", tree.compile_error()
    if not mutant.by:
        room, stem = Path(mutant.file).parent.name, Path(mutant.file).stem
        own = shlex.quote(str(tree.build / "tests" / f"{room}_test"))
        tests = [(command, longest_s[command]) for command in sorted(longest_s, key=lambda test: test != own)]
        if (tree.source / f"tests/cpp/{room}/{stem}_test.cc").exists():
            tests.insert(0, (f"{own} {stem}_test.", longest_s[own]))
        for command, plain_s in tests:
            for limit_s in (5 * plain_s + 20, 20 * plain_s + 80):  # at first, the machine may have been busy
                mutant.by, _ = killer(shlex.split(command), tree, limit_s)
                if not mutant.by.startswith(TIMEOUT):
                    break
            if mutant.by:
                break
        mutant.verdict = "killed" if mutant.by else "survived"
    tree.write(mutant.file, text.encode())


def described(mutant: Mutant) -> str:
    before, after = (textwrap.shorten(text, 200, placeholder=" …") for text in (mutant.before, mutant.after))
    verdict = (
        f"killed by {mutant.by}" if mutant.verdict == "killed" else f"{mutant.verdict.upper()} {mutant.by}".strip()
    )
    return f"{mutant.file}:{mutant.line}: {before}  →  {after or '(nothing)'}  [{verdict}]"


def summary(mutants: list[Mutant]) -> str:
    lines = []
    rooms = sorted({Path(mutant.file).parent.name for mutant in mutants})
    for room in [*rooms, "all"]:
        judged = [mutant for mutant in mutants if room in ("all", Path(mutant.file).parent.name)]
        killed = [mutant for mutant in judged if mutant.verdict == "killed"]
        hung = sum(mutant.by.startswith(TIMEOUT) for mutant in killed)
        asked = len(killed) + sum(mutant.verdict == "survived" for mutant in judged)
        rate = f"{len(killed) / asked:.0%}" if asked else "-"
        rest = f"{hung} by a timeout; {len(judged) - asked} don't compile, are gone or not judged yet"
        lines.append(f"{room}: {len(killed)} of {asked} killed, {rate}, {rest}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help="sources below csrc, or directories of them"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mutants", type=int, default=20, help="how many, over all files")
    parser.add_argument("--jobs", type=int, default=1, help="compile jobs")
    parser.add_argument("--also", default="", metavar="ARGS", help='pytest arguments, e.g. "tests/pd"; slow')
    parser.add_argument("--report", type=Path, metavar="FILE", help="JSON; written after each mutant")
    parser.add_argument("--list", action="store_true", help="print what would be judged")
    chosen = parser.parse_args()

    if chosen.report and chosen.report.exists():
        mutants = [Mutant(**entry) for entry in json.loads(chosen.report.read_text())]
    else:
        files = [each for path in chosen.files for each in (sorted(path.glob("*.cc")) if path.is_dir() else [path])]
        sources = {str(file.resolve().relative_to(ROOT)): file.read_text() for file in files}
        mutants = draw(sources, chosen.seed, chosen.mutants)
    asked = [mutant for mutant in mutants if mutant.verdict in ("", "survived")]
    if chosen.list:
        print(*map(described, asked), sep="\n")
        return
    tree = Tree(ROOT / "build" / "mutate", chosen.jobs, bindings=bool(chosen.also))
    longest_s = plain_times(tree, chosen.also)
    for mutant in asked:
        judge(mutant, tree, longest_s)
        print(described(mutant), flush=True)
        if chosen.report:
            chosen.report.write_text(json.dumps([asdict(each) for each in mutants], indent=1, ensure_ascii=False))
    print(summary(mutants))


if __name__ == "__main__":
    main()
