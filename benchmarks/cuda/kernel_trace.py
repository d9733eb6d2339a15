"""The time of each kind of kernel in an engine's steps, from a trace of kernel_trace.cc.

Kernels overlap, so what counts is how much later a kernel ends than all before it. Steps begin with the embedding;
steps of the same kernels and about the same length are one kind, and of each kind with three or more the median step is
printed.
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass

NAMES = [
    "norm_rows",
    "prefill_wgmma",
    "decode_kernel",
    "rope_store",
    "survey",
    "draw",
    "cut",
    "finish",
    "embed_rows",
    "gather",
    "zero",
]


@dataclass
class Kernel:
    begin: int
    end: int
    name: str


def short(mangled: str) -> str:
    if tile := re.search(r"TileConfigI(.*?)EELNS0_12LinearOutputE(\d)", mangled):
        return "wgmma " + ",".join(re.findall(r"L[ib](\d+)", tile[1])) + " output " + tile[2]
    if stream := re.search(r"stream_kernelI(.*?)LNS0_12LinearOutputE(\d)", mangled):
        return "stream " + ",".join(re.findall(r"Li(\d+)", stream[1])) + " output " + stream[2]
    return next((name for name in NAMES if re.search(rf"\d{name}", mangled)), mangled[-60:])


def read(path: str) -> list[Kernel]:
    with open(path) as lines:
        fields = [line.split(" ", 2) for line in lines]
    return sorted(
        (Kernel(int(begin), int(end), short(name.strip())) for begin, end, name in fields), key=lambda k: k.begin
    )


def print_step(step: list[Kernel], count: int) -> None:
    total: dict[str, list[float]] = {}
    last = step[0].begin
    for kernel in sorted(step, key=lambda k: k.end):
        total.setdefault(kernel.name, []).append(max(0, kernel.end - last) / 1e3)
        last = max(last, kernel.end)
    print(f"--- {count} steps of {len(step)} kernels, median {(last - step[0].begin) / 1e6:.3f} ms")
    for name, times in total.items():
        print(f"  {name:40} {len(times):4} x {sum(times) / len(times):9.2f} us, together {sum(times) / 1e3:8.3f} ms")


def main(path: str) -> None:
    kernels = read(path)
    starts = [i for i, kernel in enumerate(kernels) if kernel.name == "embed_rows"]
    kinds: dict[tuple[int, frozenset[str], int], list[list[Kernel]]] = {}
    for start, end in zip(starts, [*starts[1:], len(kernels)], strict=True):
        step = kernels[start:end]
        ns = max(kernel.end for kernel in step) - step[0].begin
        kinds.setdefault((len(step), frozenset(k.name for k in step), round(math.log(ns) * 6)), []).append(step)
    for steps in kinds.values():
        if len(steps) < 3:
            continue
        steps.sort(key=lambda step: max(kernel.end for kernel in step) - step[0].begin)
        print_step(steps[len(steps) // 2], len(steps))


if __name__ == "__main__":
    main(sys.argv[1])
