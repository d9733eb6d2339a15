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

MACHINES = {machine.name: machine for machine in (H200,)}
