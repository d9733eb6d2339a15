"""Status: the workers as this router knows them, under RTP-LLM's names where the meaning is the same."""

from __future__ import annotations

from typing import Any

from rtp_llm.metrics import readings
from rtp_llm.router.fleet import RemoteWorker


def worker_row(worker: RemoteWorker, now: float) -> dict[str, Any]:
    """`now`: the loop's time. What a worker says of itself is null until it has, and while its session is broken."""
    load, row = worker.load, _named(worker)
    said = {
        "waiting_query_len": load.waiting,
        "running_query_len": load.running,
        "queued_tokens": load.queued_tokens,
        "max_queued_tokens": load.max_queued_tokens,
        "available_concurrency": worker.view().free_slots,
        "max_concurrency": load.slots,
        "step_latency_ms": round(worker.last_step_s * 1e3, 3) if worker.last_step_s else None,
        "available_kv_cache": load.free_blocks * load.block_tokens,
        "total_kv_cache": load.total_blocks * load.block_tokens,
        "block_size": load.block_tokens,
        "max_seq_len": worker.hello.max_model_len,
        "age_ms": round((now - worker.load_at) * 1e3),
    }
    return row | (said if worker.is_live and worker.has_said_load else dict.fromkeys(said))


def cache_row(worker: RemoteWorker, metrics: str | None) -> dict[str, Any]:
    """`metrics`: its exposition, the only one that counts the blocks; None: it didn't answer, and they are null."""
    text, block_tokens = metrics or "", worker.load.block_tokens
    blocks = {state: int(count) for state, count in readings(text, "rtp_llm_kv_blocks", "state").items()}
    said = {
        "available_kv_cache": (blocks.get("free", 0) + blocks.get("cached", 0)) * block_tokens,
        "total_kv_cache": worker.load.total_blocks * block_tokens,
        "block_size": block_tokens,
        "blocks": blocks,
        "prefix_hit_tokens": _count(text, "rtp_llm_prefix_hit_tokens_total"),
        "prompt_tokens_computed": _count(text, "rtp_llm_prompt_tokens_computed_total"),
        "version": worker.cache_version,
    }
    return _named(worker) | (dict.fromkeys(said) if metrics is None else said)


def _count(text: str, name: str) -> int:
    """Of a counter without labels."""
    return int(readings(text, name, "").get("", 0))


def _named(worker: RemoteWorker) -> dict[str, Any]:
    is_live = worker.is_live
    return {
        "worker": worker.member.id,
        "role": worker.member.pool.upper(),
        "alive": is_live,
        "state": worker.state,
        "address": worker.member.address,
        "epoch": f"{worker.key.epoch:016x}" if is_live else None,
        "protocol": worker.session.protocol if is_live else None,
    }
