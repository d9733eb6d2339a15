"""Simulated goodput of the placement policy `cost` beside an undivided fleet and the best fixed split: 8 workers, SLO TTFT at
most 3 times and mean ITL at most twice what an idle worker takes, load a fraction of the undivided fleet's saturated rate.

    python benchmarks/goodput.py --machine h200 --output benchmarks/results/goodput_h200.jsonl
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing import Pool
from pathlib import Path
from typing import Any

from rtp_llm.simulation.grid import LOADS, NUM_WORKERS, OUTPUTS, PROMPTS, Draws, Point, grid
from rtp_llm.simulation.machines import MACHINES

LEAST = 0.98


def points(lengths: tuple[str, int, int, list[float], Draws]) -> list[Point]:
    machine, prompt, output, loads, draws = lengths
    return list(grid(MACHINES[machine], [prompt], [output], loads, draws))


def all_points(args: argparse.Namespace) -> Iterator[Point]:
    draws = Draws(args.seeds, max(args.most_seeds, args.seeds), LEAST)
    lengths = [(args.machine, prompt, output, args.loads, draws) for prompt in args.prompts for output in args.outputs]
    with Pool(args.jobs) as pool:
        for found in pool.imap(points, lengths):
            yield from found


def verdict(point: Point) -> str:
    """Whether `cost` reaches LEAST of the better fixed fleet, by the interval."""
    low, high = point.interval
    return "yes" if low >= LEAST else "no" if high < LEAST else "perhaps"


def line(point: Point) -> str:
    split = f"{point.num_prefill}:{NUM_WORKERS - point.num_prefill}"
    low, high = point.interval
    return (
        f"prompt {point.prompt_tokens:5} output {point.output_tokens:4} load {point.load:4} rate {point.rate:7.1f}  "
        f"undivided {point.undivided:.3f}  split {point.split:.3f} ({split})  cost {point.cost:.3f}  ratio {point.ratio:.3f} "
        f"({low:.3f} to {high:.3f})  draws {len(point.gains)}  {verdict(point)}"
    )


def _rounded(value: Any) -> Any:
    """All figures to four places; JSON has no infinity."""
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", choices=sorted(MACHINES), default="h200")
    parser.add_argument("--prompts", type=int, nargs="+", default=PROMPTS, metavar="TOKENS")
    parser.add_argument("--outputs", type=int, nargs="+", default=OUTPUTS, metavar="TOKENS")
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS, metavar="PART")
    parser.add_argument(
        "--seeds", type=int, default=3, help="arrivals drawn so many times at least; goodput is their mean"
    )
    parser.add_argument(
        "--most-seeds",
        type=int,
        default=40,
        help="at most: until the ratio's 95%% interval lies on one side of 0.98",
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, help="a JSON object a point, appended")
    args = parser.parse_args()
    for point in all_points(args):
        print(line(point), flush=True)
        if args.output is not None:
            row = {"machine": args.machine, **asdict(point), "ratio": point.ratio, "interval": point.interval}
            with args.output.open("a") as file:
                file.write(json.dumps(_rounded(row)) + "\n")


if __name__ == "__main__":
    main()
