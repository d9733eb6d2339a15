"""The workers as a router knows them: docs/http-api.md."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from rtp_llm.directory import StaticMembership
from rtp_llm.metrics import RouterMetrics, WorkerMetrics, exposition, new_registry
from rtp_llm.router import fleet as fleet_module
from rtp_llm.router.fleet import Fleet, RemoteWorker
from rtp_llm.router.status import cache_row, worker_row
from rtp_llm.wire.session import SessionTiming
from rtp_llm.wire.v1 import router_pb2 as pb
from rtp_llm.worker.figures import BLOCK_STATES
from tests.router.test_fleet import Listener, ScriptedSession, connect, member

DOCUMENTED = Path(__file__).resolve().parents[2] / "docs" / "http-api.md"


@pytest.fixture
async def worker(monkeypatch: pytest.MonkeyPatch) -> RemoteWorker:
    """Known to the membership, and no more."""
    monkeypatch.setattr(fleet_module, "WorkerSession", ScriptedSession)
    metrics = RouterMetrics(CollectorRegistry())
    fleet = Fleet(StaticMembership(), model="m", router_id="r", router_epoch=7, timing=SessionTiming(), metrics=metrics)
    fleet.listener = Listener()
    fleet._workers["a"] = RemoteWorker(member("a"), fleet)
    return fleet._workers["a"]


def row_of(worker: RemoteWorker) -> dict[str, Any]:
    return worker_row(worker, asyncio.get_running_loop().time())


async def test_a_worker_is_shown_as_its_last_load_says(worker: RemoteWorker) -> None:
    connect(worker._fleet, "a", epoch=255, max_model_len=4096)
    step = pb.StepSample(decode_rows=1, seconds=0.0125)
    load = pb.Load(
        queued_tokens=30, max_queued_tokens=100, waiting=2, running=3, slots=8, slots_of_others=3, block_tokens=16,
        blocks_free=10, blocks_total=40, step=step,
    )  # fmt: skip
    worker.message(pb.WorkerMessage(load=load))
    row = row_of(worker)
    assert 0 <= row.pop("age_ms") < 60_000
    assert row == {
        "worker": "a",
        "role": "DECODE",
        "alive": True,
        "state": "live",
        "address": "a:1",
        "epoch": "00000000000000ff",
        "protocol": 2,
        "waiting_query_len": 2,
        "running_query_len": 3,
        "queued_tokens": 30,
        "max_queued_tokens": 100,
        "available_concurrency": 5,
        "max_concurrency": 8,
        "step_latency_ms": 12.5,
        "available_kv_cache": 160,
        "total_kv_cache": 640,
        "block_size": 16,
        "max_seq_len": 4096,
    }


@pytest.mark.parametrize("was_there", [False, True])
async def test_of_a_worker_that_is_not_there_nothing_is_claimed(worker: RemoteWorker, was_there: bool) -> None:
    if was_there:
        connect(worker._fleet, "a")
        worker.session.is_connected = False  # type: ignore[misc]
    row = row_of(worker)
    assert (row.pop("worker"), row.pop("role"), row.pop("address")) == ("a", "DECODE", "a:1")
    assert (row.pop("alive"), row.pop("state")) == (False, "connecting")
    assert set(row.values()) == {None}


async def test_a_worker_that_has_said_no_load_yet_has_none(worker: RemoteWorker) -> None:
    connect(worker._fleet, "a")
    assert row_of(worker)["step_latency_ms"] is None  # no step either
    worker._ledger = type(worker._ledger)()
    assert row_of(worker)["alive"] and row_of(worker)["running_query_len"] is None


async def test_a_cache_is_shown_by_the_workers_own_count(worker: RemoteWorker) -> None:
    connect(worker._fleet, "a")
    worker.message(pb.WorkerMessage(load=pb.Load(max_queued_tokens=100, block_tokens=16, blocks_total=21)))
    registry = new_registry()
    metrics = WorkerMetrics(registry)
    for number, state in enumerate(BLOCK_STATES, 1):
        metrics.kv_blocks.labels(state=state).set(number)
    metrics.prefix_hit_tokens.inc(7)
    metrics.prompt_tokens_computed.inc(9)
    row = cache_row(worker, exposition(registry).decode())
    assert row["blocks"] == {state: number for number, state in enumerate(BLOCK_STATES, 1)}
    assert row["available_kv_cache"] == 16 * (row["blocks"]["free"] + row["blocks"]["cached"])
    assert (row["total_kv_cache"], row["block_size"]) == (336, 16)
    assert (row["prefix_hit_tokens"], row["prompt_tokens_computed"], row["version"]) == (7, 9, None)


async def test_a_cache_that_the_router_follows_has_a_version(worker: RemoteWorker) -> None:
    connect(worker._fleet, "a")
    worker._heard_of_cache(pb.WorkerMessage(cache_snapshot=pb.CacheSnapshot(number=41)))
    assert cache_row(worker, "")["version"] == 41


async def test_a_worker_that_does_not_answer_has_no_cache_to_show(worker: RemoteWorker) -> None:
    connect(worker._fleet, "a")
    row = cache_row(worker, None)
    assert row["alive"] and row["blocks"] is row["available_kv_cache"] is row["version"] is None


async def test_the_documentation_names_each_field(worker: RemoteWorker) -> None:
    text = DOCUMENTED.read_text().partition("## Workers")[2].partition("\n## ")[0]
    rows = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in text.splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in row} - {"worker_status", "cache_status"}
    assert documented == set(row_of(worker)) | set(cache_row(worker, None))
