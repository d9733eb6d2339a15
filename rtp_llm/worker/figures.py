"""Figures: a worker's load as routers and as autoscaling see it, and its metrics."""

from __future__ import annotations

from typing import Any

from rtp_llm.autoscaling.figures import WorkerFigures
from rtp_llm.metrics import Totals, WorkerMetrics, exposition, new_registry
from rtp_llm.wire.v1.router_pb2 import Load, StepSample

WEIGHTS = {"model", "lm_head", "weights"}  # what tensors' names begin with
BLOCK_STATES = ("free", "referenced", "granted", "quarantined", "gated", "cached")


def load_message(load: Any, *, max_queued_tokens: int, block_tokens: int) -> Load:
    """`load`: the native EngineLoad."""
    blocks, step = load.blocks, load.step
    return Load(
        queued_tokens=load.queued_tokens,
        waiting=load.waiting,
        running=load.running,
        blocks_free=blocks.free + blocks.cached,
        max_queued_tokens=max_queued_tokens,
        block_tokens=block_tokens,
        slots=load.slots.total,
        blocks_total=blocks.total,
        step=StepSample(
            decode_rows=step.decode_rows,
            context_tokens=step.context_tokens,
            prefill_rows=step.prefill_rows,
            attention_pairs=step.attention_pairs,
            seconds=step.seconds,
        ),
    )


def worker_figures(load: Any, block_tokens: int) -> WorkerFigures:
    """`load`: the native EngineLoad."""
    blocks = load.blocks
    return WorkerFigures(
        queued_tokens=float(load.queued_tokens),
        waiting=float(load.waiting),
        running=float(load.running),
        max_num_seqs=float(load.slots.total),
        kv_tokens=float((blocks.total - blocks.free - blocks.cached) * block_tokens),
        max_kv_tokens=float(blocks.total * block_tokens),
        prompt_tokens_computed=float(load.prompt_tokens_computed),
        decode_tokens_computed=float(load.decode_tokens_computed),
    )


def slots_of_others(load: Any, router_epoch: int) -> int:
    """Slots of the native EngineLoad that other routers' sequences hold; what waits in the engine's queue, whoever placed it,
    will take its own before a handover gets one."""
    slots = load.slots
    return int(slots.taken - slots.taken_by.get(router_epoch, 0) + load.slots_awaited)


class Figures:
    """Fills WorkerMetrics from what the native side counts, when it is asked."""

    def __init__(self, *, max_model_len: int = 0, block_tokens: int = 0) -> None:
        self._block_tokens = block_tokens
        self._registry = new_registry()
        self.metrics = WorkerMetrics(self._registry)
        self.metrics.max_model_len.set(max_model_len)
        self._totals = Totals()

    def text(self, load: Any, transfer: dict[str, Any], allocations: list[tuple[int, int, str]]) -> bytes:
        """Prometheus' text of the native EngineLoad, KvTransfer.counts() and the device's allocations."""
        self._engine(load, hits_of_received=transfer["prefix_hit_tokens"])
        self._transfer(transfer)
        memory: dict[str, int] = {}
        for _, size, name in allocations:
            tag = _purpose(name)
            memory[tag] = memory.get(tag, 0) + size
        for tag, size in memory.items():
            self.metrics.device_memory_bytes.labels(tag=tag).set(size)
        return exposition(self._registry)

    def _engine(self, load: Any, hits_of_received: int) -> None:
        metrics, totals, blocks = self.metrics, self._totals, load.blocks
        totals.raise_to(metrics.prompt_tokens_computed, load.prompt_tokens_computed)
        totals.raise_to(metrics.decode_tokens_computed, load.decode_tokens_computed)
        totals.raise_to(metrics.prefix_hit_tokens, load.prefix_hit_tokens + hits_of_received)
        totals.raise_to(metrics.preemptions, load.preemptions)
        totals.raise_to(metrics.engine_steps, load.steps)
        for state in BLOCK_STATES:
            metrics.kv_blocks.labels(state=state).set(getattr(blocks, state))
        metrics.kv_pool_tokens.set(blocks.total * self._block_tokens)
        metrics.sequences.labels(state="running").set(load.running)
        metrics.sequences.labels(state="waiting").set(load.waiting)
        metrics.queued_tokens.set(load.queued_tokens)

    def _transfer(self, counts: dict[str, Any]) -> None:
        metrics, totals = self.metrics, self._totals
        for transport, lane in counts["lanes"].items():
            for direction in ("sent", "received"):
                labels = {"direction": direction, "transport": transport}
                totals.raise_to(metrics.transfer_bytes.labels(**labels), lane[f"bytes_{direction}"])
                totals.raise_to(metrics.transfer_messages.labels(**labels), lane[f"messages_{direction}"])
        totals.raise_to(metrics.transfer_seconds.labels(direction="sent"), counts["send_seconds"])
        totals.raise_to(metrics.transfer_seconds.labels(direction="received"), counts["receive_seconds"])
        for outcome in ("committed_sent", "committed_received", "no_room", "expired", "bad_checksum"):
            totals.raise_to(metrics.transfers.labels(outcome=outcome), counts[outcome])
        metrics.transfer_outstanding.labels(direction="sent").set(counts["sends_outstanding"])
        metrics.transfer_outstanding.labels(direction="received").set(counts["receives_outstanding"])


def _purpose(name: str) -> str:
    """Of an allocation: what its name begins with, one for all weights."""
    first = name.partition(".")[0]
    return "weights" if first in WEIGHTS else first
