"""What large bodies, right and wrong, do to a stream of the same router, and to its memory.

python benchmarks/large_bodies.py [--mib 1 4 8] [--only TEXT]

`rtp-llm serve` with the demo model. Of each body: the longest gap between two tokens of a stream that runs meanwhile, from
before the body is sent until 0.3 s after its answer, and the peak of what the router and its process for large bodies grow by,
in times the body. Beside them the longest gap of as long a time without a body: what the machine does besides shows there.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.router.large_bodies import LargeBody, large_bodies
from tests.serve.deployment import Deployment, descendants

LIMIT_MS = 100.0
LIMIT_MEMORY = 10.0
LINGER_S = 0.3
LOOK_S = 0.002
STREAM = {
    "prompt": "1 2 3",
    "max_tokens": 1900,
    "min_tokens": 1900,
    "ignore_eos": True,
    "temperature": 0,
    "stream": True,
}


class Stream(threading.Thread):
    """One stream after the other; when each event came."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self.came: list[float] = []
        self._firsts: set[float] = set()  # of each stream: what it waits for is its turn behind the body's prompts
        self._stopped = threading.Event()

    def run(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self._stopped.is_set():
                with client.stream("POST", f"{self._url}/v1/completions", json=STREAM) as response:
                    is_first = True
                    for line in response.iter_lines():
                        if line.startswith("data: {"):
                            now = time.monotonic()
                            if is_first:
                                self._firsts.add(now)
                            is_first = False
                            self.came.append(now)
                        if self._stopped.is_set():
                            return

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def longest_gap_ms(self, begin: float, end: float) -> float:
        """Between two tokens of one stream."""
        times = [begin, *(each for each in list(self.came) if begin < each < end), end]
        return max(two - one for one, two in itertools.pairwise(times) if two not in self._firsts) * 1000


class Memory(threading.Thread):
    """The peak of what some processes hold together."""

    def __init__(self, pids: list[int]) -> None:
        super().__init__(daemon=True)
        self._files = [Path(f"/proc/{pid}/statm") for pid in pids]
        self._stopped = threading.Event()
        self.before = self.peak = self._now()

    def _now(self) -> int:
        return sum(int(file.read_text().split()[1]) for file in self._files) * 4096

    def run(self) -> None:
        while not self._stopped.wait(LOOK_S):
            self.peak = max(self.peak, self._now())

    def grown(self) -> int:
        self._stopped.set()
        self.join()
        return self.peak - self.before


def post(deployment: Deployment, body: LargeBody) -> int:
    url = httpx.URL(deployment.url)
    connection = http.client.HTTPConnection(url.host, url.port, timeout=120)
    connection.request("POST", body.path, body.content, {"Content-Type": "application/json"})
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


def measured(
    deployment: Deployment, bodies: Iterator[LargeBody]
) -> Iterator[tuple[LargeBody, int, float, float, float, float]]:
    """(body, status, seconds, longest gap without it, with it, memory in times the body)"""
    router = deployment.replica("router")
    pids = [router, *descendants(router)]
    stream = Stream(deployment.url)
    stream.start()
    while len(stream.came) < 20:
        time.sleep(0.05)
    for body in bodies:
        memory = Memory(pids)
        memory.start()
        began = time.monotonic()
        status = post(deployment, body)
        ended = time.monotonic() + LINGER_S
        time.sleep(LINGER_S)
        seconds, grown = ended - began, memory.grown()
        time.sleep(seconds)
        quiet = stream.longest_gap_ms(ended, ended + seconds)
        yield body, status, seconds, quiet, stream.longest_gap_ms(began, ended), grown / body.size
    stream.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--only", default="", help="bodies whose name holds this")
    options = parser.parse_args()
    deployment = Deployment()
    failed, quiet_gaps, gaps = [], [], []
    try:
        print(f"{'body':36} {'MiB':>4} {'status':>6} {'s':>6} {'gap without':>12} {'gap with':>9} {'memory':>7}")
        for mib in options.mib:
            bodies = (body for body in large_bodies(mib << 20) if options.only in body.name)
            for body, status, seconds, quiet, gap, memory in measured(deployment, bodies):
                print(
                    f"{body.name:36} {mib:4} {status:6} {seconds:6.2f} {quiet:9.0f} ms {gap:6.0f} ms {memory:6.1f}x",
                    flush=True,
                )
                quiet_gaps.append(quiet)
                gaps.append(gap)
                if status != body.status or gap > LIMIT_MS or memory > LIMIT_MEMORY:
                    failed.append(body.name)
    finally:
        deployment.stop()
    print(
        json.dumps(
            {
                "bodies": len(gaps),
                "gap_ms": {"median": statistics.median(gaps), "longest": max(gaps)},
                "gap_without_ms": {"median": statistics.median(quiet_gaps), "longest": max(quiet_gaps)},
            }
        )
    )
    print(f"statuses right, gaps at most {LIMIT_MS:g} ms, memory at most {LIMIT_MEMORY:g} times the body: ", end="")
    print(f"NO: {', '.join(failed)}" if failed else "yes")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
