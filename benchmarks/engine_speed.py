"""The engine on the shape of Qwen2.5-0.5B (bf16, random weights) against this machine, in one process and one run.

    python benchmarks/engine_speed.py --threads 2        # decode GB/s and prefill GFLOP/s, with their yardsticks
    python benchmarks/engine_speed.py --scaling          # prefill by one and by two threads, in turn

Decode: tokens a second at batch 1 times the bytes of weights that a token reads, against the memory read rate. Prefill: a
512-token prompt's multiply-adds, against the best oneDNN bf16 rate over the model's matrix shapes (if torch is installed).
Yardsticks are measured before and after each figure, as shared machines drift; the better one counts.

A matmul lasts milliseconds and a prefill a second, so on a shared machine the best matmul had its cores to itself and
the best prefill had not. Prefill therefore prints the cores that it had and those that it waited for in a run queue. What
is left of its threads is idle: they wait for each other.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rtp_llm import LLM, SamplingParams
from rtp_llm._native import _engine

# Qwen2.5-0.5B's numbers under Qwen3's or Llama's class.
SHAPE = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
}
PROMPT = 512


def matrices() -> dict[str, tuple[int, int, int]]:
    """name → (how many, out features, in features) of the multiplications of one token."""
    hidden, inter, layers = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["num_hidden_layers"]
    q = SHAPE["num_attention_heads"] * SHAPE["head_dim"]
    kv = SHAPE["num_key_value_heads"] * SHAPE["head_dim"]
    return {
        "qkv": (layers, q + 2 * kv, hidden),
        "o": (layers, hidden, q),
        "gate_up": (layers, 2 * inter, hidden),
        "down": (layers, hidden, inter),
        "lm_head": (1, SHAPE["vocab_size"], hidden),
    }


def decode_bytes() -> int:
    return sum(number * rows * features * 2 for number, rows, features in matrices().values())


def prefill_flops() -> int:
    """Of a prompt: every row through the layers, one through lm_head, and causal attention."""
    linear = sum(n * rows * features * 2 for name, (n, rows, features) in matrices().items() if name != "lm_head")
    q = SHAPE["num_attention_heads"] * SHAPE["head_dim"]
    attention = SHAPE["num_hidden_layers"] * 2 * 2 * q * PROMPT * (PROMPT + 1) // 2
    head = 2 * SHAPE["vocab_size"] * SHAPE["hidden_size"]
    return PROMPT * linear + attention + head


def onednn_rate(threads: int, rounds: int) -> float | None:
    """Best bf16 FLOP/s of torch's matmul over the layers' shapes at M = 512; None without torch."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(threads)
    best = 0.0
    for name, (_, rows, features) in matrices().items():
        if name == "lm_head":
            continue
        x = torch.randn(PROMPT, features, dtype=torch.bfloat16)
        w = torch.randn(rows, features, dtype=torch.bfloat16)
        for _ in range(rounds):
            begin = time.perf_counter()
            torch.nn.functional.linear(x, w)
            best = max(best, 2 * PROMPT * rows * features / (time.perf_counter() - begin))
    return best


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


@dataclass
class Cores:
    """Seconds of one or more runs, and core-seconds that the process's threads ran or waited in a run queue."""

    wall: float = 0.0
    ran: float = 0.0
    waited: float = 0.0

    def timed(self, work: Callable[[], object]) -> float:
        before, seconds, after = thread_seconds(), timed(work), thread_seconds()
        self.wall += seconds
        self.ran += after[0] - before[0]
        self.waited += after[1] - before[1]
        return seconds

    def __str__(self) -> str:
        return f"had {self.ran / self.wall:.2f} cores, waited for {self.waited / self.wall:.2f}"


def thread_seconds() -> tuple[float, float]:
    """Core-seconds that this process's threads have run, and waited for a core (Linux, proc(5): schedstat)."""
    fields = [task.read_text().split() for task in Path("/proc/self/task").glob("*/schedstat")]
    return sum(int(f[0]) for f in fields) / 1e9, sum(int(f[1]) for f in fields) / 1e9


def decode_rates(llm: LLM, tokens: int, rounds: int) -> list[float]:
    """Tokens a second after the first, each round."""
    long = SamplingParams(temperature=0, max_tokens=tokens + 1, ignore_eos=True)
    short = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    rates = []
    for i in range(rounds):
        prompt = [[7 + i, *range(100, 115)]]
        first = timed(lambda prompt=prompt: llm.generate(prompt, short))
        rates.append(tokens / (timed(lambda prompt=prompt: llm.generate(prompt, long)) - first))
    return rates


def prefill(llm: LLM, i: int) -> None:
    """One prompt of 512 tokens, another for each i."""
    prompt = [(i * 997 + j * j) % 150000 for j in range(PROMPT)]
    llm.generate([prompt], SamplingParams(temperature=0, max_tokens=1))


def prefill_seconds(llm: LLM, rounds: int, cores: Cores) -> list[float]:
    return [cores.timed(lambda i=i: prefill(llm, i)) for i in range(rounds)]


def report(name: str, values: list[float], best: float, unit: str, yardstick: float | None, of: str) -> None:
    line = f"{name}: best {best:.1f} {unit} (median of rounds {statistics.median(values):.1f})"
    if yardstick is not None:
        line += f", {best / yardstick:.2f} of {yardstick:.1f} {unit} {of}"
    print(line, flush=True)


def make_llm(architecture: str, threads: int) -> LLM:
    with tempfile.TemporaryDirectory() as directory:
        config = {**SHAPE, "architectures": [architecture]}
        (Path(directory) / "config.json").write_text(json.dumps(config))
        return LLM(
            directory,
            skip_tokenizer_init=True,
            load_format="dummy",
            num_threads=threads,
            max_model_len=1024,
            max_num_batched_tokens=PROMPT,
            enable_prefix_caching=False,
        )


def measure(options: argparse.Namespace) -> None:
    """Decode and prefill, each beside its yardstick."""
    with make_llm(options.architecture, options.threads) as llm:
        print(f"{options.architecture}, {options.threads} threads, {llm.engine.native.numerics_id}", flush=True)

        def read_rate() -> float:
            return float(_engine.memory_read_rate(1 << 30, options.threads, 5)) / 1e9

        before = read_rate()
        rates = decode_rates(llm, options.tokens, options.rounds)
        gigabytes = [rate * decode_bytes() / 1e9 for rate in rates]
        print(f"decode batch 1: best {max(rates):.1f} tok/s", flush=True)
        report("decode batch 1", gigabytes, max(gigabytes), "GB/s", max(before, read_rate()), "memory read rate")

        before_flops = onednn_rate(options.threads, 5)
        cores = Cores()
        seconds = prefill_seconds(llm, options.rounds, cores)
        gflops = [prefill_flops() / s / 1e9 for s in seconds]
        after_flops = onednn_rate(options.threads, 5)
        best = max(before_flops or 0, after_flops or 0) / 1e9 or None
        print(f"prefill {PROMPT}: best {PROMPT / min(seconds):.0f} tok/s, {cores}", flush=True)
        report(f"prefill {PROMPT}", gflops, max(gflops), "GFLOP/s", best, "best oneDNN bf16 rate")


def measure_scaling(options: argparse.Namespace) -> None:
    """Prefill by one and by two threads in turn, so that both meet the same machine."""
    counts = (1, 2)
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    cores = {count: Cores() for count in counts}
    with make_llm(options.architecture, 1) as one, make_llm(options.architecture, 2) as two:
        for i in range(options.rounds):
            for count, llm in zip(counts, (one, two), strict=True):
                seconds[count].append(cores[count].timed(lambda llm=llm, i=i: prefill(llm, i)))
    for count in counts:
        rate = prefill_flops() / min(seconds[count]) / 1e9
        ran = prefill_flops() * options.rounds / cores[count].ran / 1e9
        print(f"prefill {PROMPT}, {count} thread: best {rate:.1f} GFLOP/s, {ran:.1f} per core-second; {cores[count]}")
    pairs = [a / b for a, b in zip(seconds[1], seconds[2], strict=True)]
    best = min(seconds[1]) / min(seconds[2])
    print(f"two threads against one: {best:.2f} by the best, {statistics.median(pairs):.2f} by the median of pairs")
    # An estimate, not a measurement. Time in a run queue is other processes'; a thread that waits for one which lost its
    # core counts as idle; and threads that seldom run at once don't show what they would contend for, such as memory.
    two_threads = cores[2]
    busy = two_threads.ran / (2 * two_threads.wall - two_threads.waited)
    unshared = 2 * busy * cores[1].ran / two_threads.ran
    print(f"  of the cores that it could have, two threads used {busy:.2f}; unshared: about {unshared:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--architecture", default="LlamaForCausalLM", choices=("LlamaForCausalLM", "Qwen3ForCausalLM"))
    parser.add_argument("--tokens", type=int, default=48, help="decoded in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scaling", action="store_true", help="prefill by one and by two threads, nothing else")
    options = parser.parse_args()
    measure_scaling(options) if options.scaling else measure(options)


if __name__ == "__main__":
    main()
