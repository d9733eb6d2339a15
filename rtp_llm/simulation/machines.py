"""Machines whose steps were measured."""

from __future__ import annotations

from rtp_llm.router.placement.step_cost import StepCost
from rtp_llm.simulation.grid import Machine

# Qwen3-8B in bfloat16 on one H200: benchmarks/results/cuda_engine.jsonl (decode at 1,024 to 1,150 tokens of context, prefill of
# 512 to 8,192). KV: 36 layers x 8 heads x 128 x 2 x 2 bytes. The wire is an assumption: 200 Gbit/s, less what protocols take.
H200 = Machine(
    name="h200",
    cost=StepCost(base_s=3.83e-3, sequence_s=18e-6, context_s=32.5e-9, row_s=23.4e-6, pair_s=1.04e-9),
    kv_tokens=700_000,
    kv_bytes_per_token=147_456,
    wire_bytes_per_s=20e9,
)

# The shape of Qwen2.5-0.5B in bfloat16 on one core of a 2 vCPU Zen 5 (avx512bf16): benchmarks/results/cpu_engine.jsonl. KV:
# 24 layers x 2 heads x 64 x 2 x 2 bytes, 4 GiB of it. The wire is an assumption: 10 Gbit/s.
CPU = Machine(
    name="cpu",
    cost=StepCost(base_s=32.3e-3, sequence_s=3.78e-3, context_s=3.14e-6, row_s=3.62e-3, pair_s=0.946e-6),
    kv_tokens=350_000,
    kv_bytes_per_token=12_288,
    wire_bytes_per_s=1.25e9,
    max_num_batched_tokens=512,
    max_num_seqs=64,
)

MACHINES = {machine.name: machine for machine in (H200, CPU)}
