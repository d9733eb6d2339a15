"""The engine on the shape of Qwen2.5-0.5B (bf16, random weights) against this machine, in one process and one run.

    python benchmarks/engine_speed.py --threads 2        # decode GB/s and prefill GFLOP/s, with their yardsticks

Decode: tokens a second at batch 1 times the bytes of weights that a token reads, against the memory read rate. Prefill: a
512-token prompt's multiply-adds, against the best oneDNN bf16 rate over the model's matrix shapes (if torch is installed).
Yardsticks are measured before and after each figure, as shared machines drift; the better one counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
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


def prefill_seconds(llm: LLM, rounds: int) -> list[float]:
    params = SamplingParams(temperature=0, max_tokens=1)
    return [
        timed(lambda i=i: llm.generate([[(i * 997 + j * j) % 150000 for j in range(PROMPT)]], params))
        for i in range(rounds)
    ]


def report(name: str, values: list[float], best: float, unit: str, yardstick: float | None, of: str) -> None:
    line = f"{name}: best {best:.1f} {unit} (median of rounds {statistics.median(values):.1f})"
    if yardstick is not None:
        line += f", {best / yardstick:.2f} of {yardstick:.1f} {unit} {of}"
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--architecture", default="LlamaForCausalLM", choices=("LlamaForCausalLM", "Qwen3ForCausalLM"))
    parser.add_argument("--tokens", type=int, default=48, help="decoded in a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        config = {**SHAPE, "architectures": [options.architecture]}
        (Path(directory) / "config.json").write_text(json.dumps(config))
        llm = LLM(
            directory,
            skip_tokenizer_init=True,
            load_format="dummy",
            num_threads=options.threads,
            max_model_len=1024,
            max_num_batched_tokens=PROMPT,
            enable_prefix_caching=False,
        )
    with llm:
        print(f"{options.architecture}, {options.threads} threads, {llm.engine.native.numerics_id}", flush=True)

        def read_rate() -> float:
            return float(_engine.memory_read_rate(1 << 30, options.threads, 5)) / 1e9

        before = read_rate()
        rates = decode_rates(llm, options.tokens, options.rounds)
        gigabytes = [rate * decode_bytes() / 1e9 for rate in rates]
        print(f"decode batch 1: best {max(rates):.1f} tok/s", flush=True)
        report("decode batch 1", gigabytes, max(gigabytes), "GB/s", max(before, read_rate()), "memory read rate")

        before_flops = onednn_rate(options.threads, 5)
        seconds = prefill_seconds(llm, options.rounds)
        gflops = [prefill_flops() / s / 1e9 for s in seconds]
        after_flops = onednn_rate(options.threads, 5)
        best = max(before_flops or 0, after_flops or 0) / 1e9 or None
        print(f"prefill {PROMPT}: best {PROMPT / min(seconds):.0f} tok/s", flush=True)
        report(f"prefill {PROMPT}", gflops, max(gflops), "GFLOP/s", best, "best oneDNN bf16 rate")


if __name__ == "__main__":
    main()
