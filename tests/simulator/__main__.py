"""python -m tests.simulator --seeds N [--from FIRST] | --seed S --trace"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.simulator.walk import walk


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulator")
    parser.add_argument("--seeds", type=int, default=1000, help="how many walks")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="one walk")
    parser.add_argument("--trace", action="store_true", help="print what happened in a walk that failed")
    parser.add_argument("--stop-after", type=int, default=10, help="failures")
    arguments = parser.parse_args()
    seeds = (
        [arguments.seed] if arguments.seed is not None else range(arguments.first, arguments.first + arguments.seeds)
    )
    counted: Counter[str] = Counter()
    failures = 0
    begin = time.monotonic()
    for seed in seeds:
        try:
            counted.update(walk(seed, trace=arguments.trace))
        except Exception as error:
            failures += 1
            for note in getattr(error, "__notes__", []):
                print(note)
            print(f"seed {seed}: {type(error).__name__}: {error}", flush=True)
            if failures >= arguments.stop_after:
                break
    for what, count in sorted(counted.items()):
        print(f"{count:12,} {what}")
    print(f"{len(seeds)} walks, {failures} failed, {time.monotonic() - begin:.1f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
