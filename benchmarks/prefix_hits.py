"""The hit rate of placement policies on a trace of real prompts, over simulated workers.

    python benchmarks/prefix_hits.py --trace mooncake_conversation_first6000.jsonl

A line of the trace: {"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [of each 512 tokens]}.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from rtp_llm.router.placement import Policy
from rtp_llm.router.placement.cost import Cost
from rtp_llm.router.placement.least_loaded import LeastLoaded
from rtp_llm.router.placement.prefix_aware import PrefixAware
from rtp_llm.simulation.machines import MACHINES
from rtp_llm.simulation.prefix_hits import Oracle, most, run
from rtp_llm.simulation.request import SimulatedRequest
from rtp_llm.simulation.worker import Engine

BLOCK_TOKENS = 512  # of the trace's hash ids
TTFT_S, ITL_S = 2.0, 0.02


def read(trace: Path, speed: float, longest: int) -> Iterator[SimulatedRequest]:
    number = 0
    for line in trace.read_text().splitlines():
        row = json.loads(line)
        prompt, output = row["input_length"], max(row["output_length"], 1)
        if prompt + output > longest:
            continue
        ids = row["hash_ids"][: prompt // BLOCK_TOKENS]
        yield SimulatedRequest(
            number=number,
            arrival=row["timestamp"] / 1000 / speed,
            prompt_tokens=prompt,
            output_tokens=output,
            block_hashes=tuple(id.to_bytes(16, "little") for id in ids),
        )
        number += 1


def policies() -> dict[str, Policy]:
    return {
        "oracle": Oracle(),
        "prefix_aware": PrefixAware(),
        "cost": Cost(ttft_target_s=TTFT_S, itl_target_s=ITL_S),
        "least_loaded": LeastLoaded(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--machine", choices=MACHINES, default="h200")
    parser.add_argument("--prefill", type=int, default=4)
    parser.add_argument("--decode", type=int, default=4)
    parser.add_argument("--speed", type=float, default=1.0, help="times as fast as it was recorded")
    parser.add_argument("--kv-tokens", type=int, help="of each worker's pool; default: the machine's")
    args = parser.parse_args()
    machine = MACHINES[args.machine]
    engine = Engine(
        cost=machine.cost,
        kv_tokens=args.kv_tokens or machine.kv_tokens,
        kv_bytes_per_token=machine.kv_bytes_per_token,
        wire_bytes_per_s=machine.wire_bytes_per_s,
        max_num_batched_tokens=machine.max_num_batched_tokens,
        max_num_seqs=machine.max_num_seqs,
        block_tokens=BLOCK_TOKENS,
        itl_target_s=ITL_S,
        max_queued_tokens=1 << 40,
    )
    requests = list(read(args.trace, args.speed, engine.kv_tokens // 2))
    print(f"requests {len(requests)}  one cache of any size {most(requests, BLOCK_TOKENS):.4f}")
    for name, policy in policies().items():
        hits = run(policy, engine, args.prefill, args.decode, requests)
        print(
            f"policy {name}  hits_where_computed {hits.computed:.4f}  hits_where_received {hits.received:.4f}  "
            f"ttft_p50_s {hits.median_ttft_s:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
