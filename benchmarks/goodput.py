"""Simulated goodput of the placement policy `cost` beside an undivided fleet and the best fixed split: 8 workers, SLO TTFT at
most 3 times and mean ITL at most twice what an idle worker takes, load a fraction of the undivided fleet's saturated rate.

    python benchmarks/goodput.py --machine h200 --output benchmarks/results/goodput_h200.jsonl
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing import Pool
from pathlib import Path

from rtp_llm.simulation.grid import NUM_WORKERS, OUTPUTS, PROMPTS, Point, grid
from rtp_llm.simulation.machines import MACHINES


def points(lengths: tuple[str, int, int, int]) -> list[Point]:
    machine, prompt, output, seeds = lengths
    return list(grid(MACHINES[machine], [prompt], [output], seeds=range(1, seeds + 1)))


def all_points(args: argparse.Namespace) -> Iterator[Point]:
    lengths = [(args.machine, prompt, output, args.seeds) for prompt in PROMPTS for output in OUTPUTS]
    with Pool(args.jobs) as pool:
        for found in pool.imap(points, lengths):
            yield from found


def line(point: Point) -> str:
    split = f"{point.num_prefill}:{NUM_WORKERS - point.num_prefill}"
    return (
        f"prompt {point.prompt_tokens:5} output {point.output_tokens:4} load {point.load:4} rate {point.rate:7.1f}  "
        f"undivided {point.undivided:.3f}  split {point.split:.3f} ({split})  cost {point.cost:.3f}  ratio {point.ratio:.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", choices=sorted(MACHINES), default="h200")
    parser.add_argument("--seeds", type=int, default=3, help="arrivals drawn so many times; goodput is their mean")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, help="a JSON object a point")
    args = parser.parse_args()
    lines = []
    for point in all_points(args):
        lines.append(json.dumps({"machine": args.machine, **asdict(point), "ratio": round(point.ratio, 4)}))
        print(line(point), flush=True)
    if args.output is not None:
        args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
