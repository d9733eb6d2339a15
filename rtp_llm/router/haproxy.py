"""HAProxy's file as Serve writes it: what it must and must not say. Run as a program it is HAProxy, on a file that says so.

Serve renders the file from a template of its own and starts RAY_SERVE_HAPROXY_BINARY_PATH (haproxy.sh) with it, at each start
and each reload. Three things of Ray 2.60's template are changed, and what is needed of the rest is looked for: a template that
has changed ends in a message here, not in a cluster that listens where it shouldn't or computes for clients that have left.
Standard library only.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

OUR_OWN = ("frontend prometheus", "listen stats")  # Serve gives them no address: all interfaces
LOOPBACK = "127.0.0.1"
REQUEST_TIMEOUT = "timeout http-request 30s"  # headers that don't end; without it the client's, an hour

# section: a line that it must have, as a pattern, and why
REQUIRED = (
    ("defaults", r"mode http", "requests are balanced, not connections"),
    ("defaults", r"option abortonclose", "a client that has left is passed on, else its answer is made to the end"),
    ("defaults", r"timeout http-request \d+m?s", "headers that never end hold a connection"),
    ("global", r"hard-stop-after \d+s", "what a reload leaves behind ends some day"),
)
# a line that no section may have, and why
FORBIDDEN = (
    (r"option splice-(request|auto)", "spliced request bodies hide the client's close from abortonclose"),
    (r"no option abortonclose", "a client that has left would not be passed on"),
    (r"bind +(\*|0\.0\.0\.0|\[?::\]?)?:\d+.*", "it would listen on all interfaces"),
)
FROM_SERVE = ("frontend http_frontend", "frontend grpc_frontend")  # they bind what http_options and grpc_options say


class TemplateError(Exception):
    """The file can't be made into what it must be."""


def edited(text: str) -> str:
    """Serve's file as HAProxy shall read it.

    Raises:
        TemplateError: it still has faults: Ray's template is none that this knows. Names all of them.
    """
    lines = []
    for section, line in _lines(text):
        if section in OUR_OWN:
            line = re.sub(r"^(\s*bind) +\*?(:\d+)\s*$", rf"\1 {LOOPBACK}\2", line)
        if re.fullmatch(r"\s*option splice-request\s*", line):
            continue
        lines.append(line)
        if line.strip() == "defaults" and not re.search(r"^\s*timeout http-request ", text, re.M):
            lines.append(f"    {REQUEST_TIMEOUT}")
    result = "\n".join(lines) + "\n"
    if found := faults(result):
        raise TemplateError("HAProxy's file is not what it must be, has Ray's template changed? " + "; ".join(found))
    return result


def faults(text: str) -> list[str]:
    """What the file lacks, and what it says and mustn't, each with its section, line and reason."""
    lines = [(section, " ".join(line.split())) for section, line in _lines(text)]
    found = []
    for section, pattern, reason in REQUIRED:
        if not any(name == section and re.fullmatch(pattern, line) for name, line in lines):
            found.append(f"{section}: no line {pattern!r} ({reason})")
    for section in OUR_OWN:
        if not any(name == section and line.startswith(f"bind {LOOPBACK}:") for name, line in lines):
            found.append(f"{section}: no bind on {LOOPBACK} (it shows what runs to whoever asks)")
    for pattern, reason in FORBIDDEN:
        for section, line in lines:
            if re.fullmatch(pattern, line) and not (section in FROM_SERVE and line.startswith("bind ")):
                found.append(f"{section}: {line!r} ({reason})")
    return found


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """(section, line) of each line; a section is named by its first line, which isn't indented."""
    section = ""
    for line in text.splitlines():
        if line and not line[0].isspace() and not line.startswith("#"):
            section = " ".join(line.split())
        yield section, line


def main(arguments: list[str]) -> None:
    """Edits the file behind -f in place and becomes HAProxy (RTP_LLM_HAPROXY), which ends with the process that started it:
    else it would outlive Serve's proxy, and hold the port."""
    for name, value in itertools.pairwise(arguments):
        if name == "-f":
            path = Path(value)
            beside = path.with_name(f"{path.name}.{os.getpid()}")
            beside.write_text(edited(path.read_text(encoding="utf-8")), encoding="utf-8")
            beside.replace(path)
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    haproxy = os.environ["RTP_LLM_HAPROXY"]
    os.execv(haproxy, [haproxy, *arguments])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (TemplateError, OSError, KeyError) as error:
        sys.exit(f"rtp_llm haproxy: {type(error).__name__}: {error}")
