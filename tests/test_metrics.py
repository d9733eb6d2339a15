from rtp_llm.metrics import RouterMetrics, WorkerMetrics, exposition, merged, new_registry


def worker_text(tokens: int) -> str:
    registry = new_registry()
    metrics = WorkerMetrics(registry)
    metrics.decode_tokens_computed.inc(tokens)
    metrics.kv_blocks.labels(state="free").set(3)
    return exposition(registry).decode()


def test_workers_are_merged_under_labels_of_pool_and_worker() -> None:
    own = new_registry()
    RouterMetrics(own).retries.labels(cause="lost").inc()
    lines = merged(own, {("decode", "d0"): worker_text(5), ("prefill", "p0"): worker_text(7)}).decode().splitlines()
    assert 'rtp_llm_retries_total{cause="lost"} 1.0' in lines
    assert 'rtp_llm_decode_tokens_computed_total{pool="decode",worker="d0"} 5.0' in lines
    assert 'rtp_llm_decode_tokens_computed_total{pool="prefill",worker="p0"} 7.0' in lines
    assert 'rtp_llm_kv_blocks{pool="prefill",state="free",worker="p0"} 3.0' in lines
    assert sum(line.startswith("# TYPE rtp_llm_kv_blocks ") for line in lines) == 1


def test_a_worker_without_metrics_adds_nothing() -> None:
    assert merged(new_registry(), {("decode", "d0"): ""}) == b""
