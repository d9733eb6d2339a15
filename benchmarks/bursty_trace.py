"""A trace whose rate rises and falls, of one whose rate doesn't: quiet, a ramp, busy, a ramp back, again and again.

    python benchmarks/bursty_trace.py mooncake.jsonl bursty.jsonl --quiet 0.3 --busy 3 --quiet-s 120 --ramp-s 60 --busy-s 60

Requests keep their order and lengths; `rtp-llm scale`, `rtp-llm bench serve` and benchmarks/autoscaling.py read the result.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

STEP_S = 0.01


def warped(due_s: Iterable[float], speed: Callable[[float], float]) -> Iterator[float]:
    """When requests are due that were due at `due_s` (in order), where time passes `speed(now)` times as fast."""
    now = passed = 0.0
    for due in due_s:
        while passed < due:
            passed += speed(now) * STEP_S
            now += STEP_S
        yield now


def rise_and_fall(args: argparse.Namespace) -> Callable[[float], float]:
    up, top = args.quiet_s, args.quiet_s + args.ramp_s
    down = top + args.busy_s

    def speed(now: float) -> float:
        at = now % (down + args.ramp_s)
        if at < up:
            part = 0.0
        elif at < top:
            part = (at - up) / args.ramp_s
        elif at < down:
            part = 1.0
        else:
            part = 1 - (at - down) / args.ramp_s
        return float(args.quiet + part * (args.busy - args.quiet))

    return speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--quiet", type=float, default=0.3, help="times the trace's rate")
    parser.add_argument("--busy", type=float, default=3.0, help="times the trace's rate")
    parser.add_argument("--quiet-s", type=float, default=120.0)
    parser.add_argument("--ramp-s", type=float, default=60.0, help="up, and down again")
    parser.add_argument("--busy-s", type=float, default=60.0)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.trace.read_text().splitlines()]
    times = warped([row["timestamp"] / 1000 for row in rows], rise_and_fall(args))
    lines = [json.dumps({**row, "timestamp": round(1000 * at)}) for row, at in zip(rows, times, strict=True)]
    args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
