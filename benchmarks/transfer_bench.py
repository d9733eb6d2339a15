"""KV transfer on this machine, beside its yardsticks in the same run.

python benchmarks/transfer_bench.py rates [--build-dir build/dev]
    GB/s (low, median, high of 5; 256 MiB each, window 8, pieces of 64 KiB as blocks lie) of messages between two processes
    over shared memory and TCP, of a plain socket and of one memcpy. Needs the build with RTP_BUILD_BENCHMARKS=ON.

python benchmarks/transfer_bench.py handover [--mode shm|tcp] [--trace FILE]
    A 1,024-token prompt on the shape of Qwen2.5-0.5B (bf16, random weights), one chunk, prefill and decode in two processes
    that have met. Prints when the KV left against when it was computed, and the handover time: second token minus first,
    less the median step of the decode worker. --trace writes the events as JSON.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHAPE = {
    "architecture": "Qwen3ForCausalLM",
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "qk_norm": False,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
}
PROMPT_TOKENS = 1024
RUNS = 3


def rates(build_dir: Path) -> None:
    binary = build_dir / "benchmarks" / "transfer"
    if not binary.exists():
        raise SystemExit(f"{binary} is not built: configure with -DRTP_BUILD_BENCHMARKS=ON")
    output = subprocess.run([binary], check=True, capture_output=True, text=True).stdout
    found = json.loads(output)["rates"]
    memcpy = next(row["gb_s"][1] for row in found if row["what"] == "memcpy")
    print(f"{'':8} {'bytes':>9} {'low':>7} {'median':>7} {'high':>7}  GB/s, and the median in memcpys")
    for row in found:
        low, median, high = row["gb_s"]
        print(f"{row['what']:8} {row['bytes']:9} {low:7.2f} {median:7.2f} {high:7.2f}  {median / memcpy:.2f}")


def handover(mode: str, trace_file: Path | None) -> None:
    sys.path.insert(0, str(ROOT / "tests" / "pd"))
    from pd_cluster import Cluster, spec

    draw = random.Random(1)
    settings: dict[str, Any] = {
        "model": SHAPE,
        "max_num_batched_tokens": PROMPT_TOKENS,
        "max_model_len": PROMPT_TOKENS + 64,
        "num_kv_blocks": 512,
        "layers_per_message": 4,
    }
    with Cluster(mode, ["prefill", "decode"], **settings) as cluster:
        for number in range(RUNS + 1):  # the first one lets the workers meet
            prompt = [draw.randrange(1, SHAPE["vocab_size"]) for _ in range(PROMPT_TOKENS)]
            request = spec(number, prompt, max_tokens=16, temperature=0.0, ignore_eos=True)
            answer = cluster.submit("prefill", "decode", request)
            cluster.run_until(lambda answer=answer: answer.finished, 120)
            if number:
                report(number, cluster, answer)
        cluster.wait_idle()
        if trace_file:
            write_trace(trace_file, mode, events(cluster, RUNS))


def events(cluster: Any, request: int) -> list[dict[str, Any]]:
    names = ("first_layer", "num_layers", "first_token", "tokens", "bytes")
    rows = [
        {"worker": worker, "s": row[0], "event": row[2], **dict(zip(names, row[3:], strict=True))}
        for worker in ("prefill", "decode")
        for row in cluster.ask(worker, "trace")
        if row[1]["request"] == request
    ]
    rows.sort(key=lambda row: row["s"])
    begin = rows[0]["s"]
    return [{**row, "s": round(row["s"] - begin, 6)} for row in rows]


def report(number: int, cluster: Any, answer: Any) -> None:
    rows = [row for row in events(cluster, number) if row["worker"] == "prefill"]
    posted = [row for row in rows if row["event"] == "posted"]
    computed = [row for row in rows if row["event"] == "layers_computed"]
    first_token = next(row["s"] for row in rows if row["event"] == "first_token")
    total = sum(row["bytes"] for row in posted)
    before = sum(row["bytes"] for row in posted if row["s"] <= first_token)
    layers = sum(row["num_layers"] for row in computed if row["s"] <= posted[0]["s"])
    first_seen: dict[int, float] = {}
    for at, position in answer.said_at:
        first_seen.setdefault(position, at)
    gaps = [first_seen[i + 1] - first_seen[i] for i in range(len(first_seen) - 1)]
    step = statistics.median(gaps[1:])
    print(
        f"run {number}: first message after {layers} of {SHAPE['num_hidden_layers']} layers, "
        f"{100 * before / total:.0f}% of {total >> 10} KiB posted before the first token ({first_token * 1e3:.0f} ms); "
        f"second token after {gaps[0] * 1e3:.1f} ms, a decode step {step * 1e3:.1f} ms, "
        f"handover {(gaps[0] - step) * 1e3:.1f} ms"
    )
    assert 2 * layers < SHAPE["num_hidden_layers"], "the first message left after half of the layers"
    assert before >= 0.8 * total, "less than 80% of the bytes left before the first token"


def write_trace(path: Path, mode: str, rows: list[dict[str, Any]]) -> None:
    head = {"shape": "Qwen2.5-0.5B, bf16, random weights", "prompt_tokens": PROMPT_TOKENS, "mode": mode}
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    path.write_text(f'{{"what": {json.dumps(head)}, "events": [\n{lines}\n]}}\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    rates_parser = verbs.add_parser("rates")
    rates_parser.add_argument("--build-dir", type=Path, default=ROOT / "build" / "dev")
    handover_parser = verbs.add_parser("handover")
    handover_parser.add_argument("--mode", choices=["shm", "tcp"], default="shm")
    handover_parser.add_argument("--trace", type=Path)
    args = parser.parse_args()
    if args.verb == "rates":
        rates(args.build_dir)
    else:
        handover(args.mode, args.trace)


if __name__ == "__main__":
    main()
