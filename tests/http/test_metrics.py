"""What /metrics, /worker_status and /cache_status say of real processes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.cluster import Cluster

BODY: dict[str, Any] = {"prompt": [20] * 300, "max_tokens": 12, "ignore_eos": True}
OF_A_ROUTER, OF_A_WORKER = {"model", "router"}, {"model", "pool", "worker"}
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def lint(text: str) -> None:
    """What promtool asks of a text: each family once, described and typed, each sample once and named as its type has it,
    buckets that grow up to the count."""
    heads = Counter(tuple(line.split()[1:3]) for line in text.splitlines() if line.startswith("# "))
    assert set(heads.values()) == {1}
    names = {name for _, name in heads}
    assert {(head, name) for name in names for head in ("HELP", "TYPE")} == set(heads)
    seen: Counter[Any] = Counter()
    for family in text_string_to_metric_families(text):
        assert family.documentation and family.type in SUFFIXES, family.name
        for sample in family.samples:
            assert sample.name in [family.name + suffix for suffix in SUFFIXES[family.type]], sample.name
            seen[sample.name, frozenset(sample.labels.items())] += 1
        if family.type == "histogram":
            check_buckets(family.samples)
    assert set(seen.values()) == {1}


def check_buckets(samples: Any) -> None:
    counts = {frozenset(s.labels.items()): s.value for s in samples if s.name.endswith("_count")}
    buckets: dict[Any, list[tuple[float, float]]] = {labels: [] for labels in counts}
    for sample in samples:
        if "le" in sample.labels:
            of = frozenset(item for item in sample.labels.items() if item[0] != "le")
            buckets[of].append((float(sample.labels["le"]), sample.value))
    for labels, found in buckets.items():
        values = [value for _, value in sorted(found)]
        assert max(found)[0] == float("inf") and values == sorted(values) and values[-1] == counts[labels]


async def test_metrics_of_all_processes_are_clean_and_each_names_its_own(tmp_path: Path) -> None:
    async with Cluster.running(prefill=2, decode=1, log_dir=tmp_path) as cluster:
        for seed in range(4):
            assert (await cluster.client.post("/v1/completions", json=BODY | {"seed": seed})).status_code == 200
        response = await cluster.client.get("/metrics")
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        model, router = cluster.config.served_name, cluster.service.fleet.router_id
    lint(response.text)
    places = set()
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            labels = sample.labels
            assert labels["model"] == model
            own = OF_A_ROUTER if "router" in labels else OF_A_WORKER
            assert own <= set(labels) and len(labels.keys() & {"router", "worker"}) == 1, sample
            places.add(labels.get("router") or (labels["pool"], labels["worker"]))
    assert places == {router, ("prefill", "prefill-0"), ("prefill", "prefill-1"), ("decode", "decode-0")}


async def test_statuses_are_those_of_the_workers(tmp_path: Path) -> None:
    async with Cluster.running(log_dir=tmp_path) as cluster:
        stream = cluster.stream(BODY | {"max_tokens": 400, "logprobs": 1})
        await cluster.until(lambda: len(stream.tokens) > 1)
        remote = cluster.service.fleet
        await cluster.until(lambda: any(each.load.running for each in remote.live() if each.hello.pool == "decode"))
        running = await rows(cluster, "/worker_status")
        assert running["decode-0"]["running_query_len"] == 1
        assert running["decode-0"]["available_kv_cache"] < running["decode-0"]["total_kv_cache"]
        await stream.finished()
        await cluster.at_rest()
        found = await rows(cluster, "/cache_status")
        for worker in cluster.workers:
            figures = await worker.figures()
            row = found[worker.id]
            assert (row["role"], row["alive"], row["state"]) == (worker.pool.upper(), True, "live")
            assert row["epoch"] == f"{worker.epoch:016x}"
            assert row["blocks"]["cached"] == figures.value("kv_blocks", state="cached") > 0
            assert row["prompt_tokens_computed"] == figures.value("prompt_tokens_computed_total")
            assert row["available_kv_cache"] == row["total_kv_cache"] == figures.value("kv_pool_tokens")
        assert found["prefill-0"]["prompt_tokens_computed"] >= 300


async def rows(cluster: Cluster, path: str) -> dict[str, dict[str, Any]]:
    answer = (await cluster.client.get(path)).json()
    assert answer["router"] == cluster.service.fleet.router_id and answer["model"] == cluster.config.served_name
    return {row["worker"]: row for row in answer["workers"]}
