import re
from pathlib import Path
from types import SimpleNamespace

from rtp_llm.metrics import RouterMetrics, WorkerMetrics, exposition, merged, new_registry, readings
from rtp_llm.worker.figures import BLOCK_STATES, Figures
from tools.dashboard import FILE, dashboard, text_of

ROOT = Path(__file__).resolve().parent.parent


def worker_text(tokens: int) -> str:
    registry = new_registry()
    metrics = WorkerMetrics(registry)
    metrics.decode_tokens_computed.inc(tokens)
    metrics.kv_blocks.labels(state="free").set(3)
    return exposition(registry).decode()


def router_text(retries: int) -> str:
    registry = new_registry()
    metrics = RouterMetrics(registry)
    metrics.retries.labels(cause="lost").inc(retries)
    metrics.time_to_first_token.observe(0.2)
    return exposition(registry).decode()


def test_routers_and_workers_are_merged_under_their_own_labels() -> None:
    texts = [
        ({"router": "r0"}, router_text(1)),
        ({"router": "r1"}, router_text(2)),
        ({"pool": "decode", "worker": "d0"}, worker_text(5)),
        ({"pool": "prefill", "worker": "p0"}, worker_text(7)),
    ]
    lines = merged({"model": "m"}, texts).decode().splitlines()
    assert 'rtp_llm_retries_total{cause="lost",model="m",router="r0"} 1.0' in lines
    assert 'rtp_llm_retries_total{cause="lost",model="m",router="r1"} 2.0' in lines
    assert 'rtp_llm_time_to_first_token_seconds_bucket{le="0.25",model="m",router="r1"} 1.0' in lines
    assert 'rtp_llm_decode_tokens_computed_total{model="m",pool="decode",worker="d0"} 5.0' in lines
    assert 'rtp_llm_decode_tokens_computed_total{model="m",pool="prefill",worker="p0"} 7.0' in lines
    assert 'rtp_llm_kv_blocks{model="m",pool="prefill",state="free",worker="p0"} 3.0' in lines
    for name in ("kv_blocks gauge", "time_to_first_token_seconds histogram"):
        assert sum(line == f"# TYPE rtp_llm_{name}" for line in lines) == 1


def test_a_process_without_metrics_adds_nothing() -> None:
    assert merged({}, [({"pool": "decode", "worker": "d0"}, "")]) == b""


def test_readings_are_the_largest_sample_of_each_label() -> None:
    text = 'rtp_llm_a{pool="p",worker="0"} 1.0\nrtp_llm_a{pool="p",worker="1"} 3.0\nrtp_llm_b{pool="p"} 9.0\n'
    assert readings(text, "rtp_llm_a", "pool") == {"p": 3.0}


def test_memory_is_shown_by_what_it_is_for() -> None:
    """Whatever the model's number of layers."""
    load = SimpleNamespace(
        **dict.fromkeys(LOAD, 0), blocks=SimpleNamespace(**dict.fromkeys((*BLOCK_STATES, "total"), 0))
    )
    transfer = dict.fromkeys(TRANSFER, 0) | {"lanes": {}}
    names = ["lm_head", "weights.inv_freq", "kv_pool", "slots.seq_len", "slots.sampling", "batch"]
    names += [f"model.layers.{layer}.self_attn.qkv_proj" for layer in range(5)]
    text = Figures(max_model_len=9, block_tokens=4).text(load, transfer, [(0, 10, name) for name in names]).decode()
    found = readings(text, "rtp_llm_device_memory_bytes", "tag")
    assert found == {"weights": 70.0, "kv_pool": 10.0, "slots": 20.0, "batch": 10.0}


LOAD = (
    "prompt_tokens_computed", "decode_tokens_computed", "prefix_hit_tokens", "preemptions", "steps", "running", "waiting",
    "queued_tokens",
)  # fmt: skip
TRANSFER = (
    "prefix_hit_tokens", "send_seconds", "receive_seconds", "committed_sent", "committed_received", "no_room", "expired",
    "bad_checksum", "sends_outstanding", "receives_outstanding",
)  # fmt: skip


MAKERS = {"router": RouterMetrics, "worker": WorkerMetrics}
OF_A_PROCESS = {"router": {"model", "router"}, "worker": {"model", "pool", "worker"}}
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def test_the_documentation_names_each_metric_with_its_type_and_labels() -> None:
    documented = [
        line for line in (ROOT / "docs" / "observability.md").read_text().splitlines() if "| `rtp_llm_" in line
    ]
    written = []
    for maker in MAKERS.values():
        for metric in vars(maker(new_registry())).values():
            [family] = metric.describe()
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = " ".join(f"`{label}`" for label in metric._labelnames)
            written.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    assert documented == written


def test_each_query_of_the_dashboard_names_metrics_and_labels_that_are_there() -> None:
    known: dict[str, set[str]] = {}
    for kind, maker in MAKERS.items():
        for metric in vars(maker(new_registry())).values():
            [family] = metric.describe()
            for suffix in SUFFIXES[family.type]:
                extra = {"le"} if suffix == "_bucket" else set()
                known[family.name + suffix] = {*metric._labelnames, *OF_A_PROCESS[kind], *extra}
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            query, legend = target["expr"], target["legendFormat"]
            selectors = re.findall(r"(rtp_llm_\w+){([^}]*)}", query)
            assert len(selectors) == query.count("rtp_llm_") > 0, query
            for name, filters in selectors:
                assert name in known and set(re.findall(r"(\w+)=", filters)) <= known[name], query
            grouped = {label for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(", ")}
            assert grouped <= set.intersection(*(known[name] for name, _ in selectors)), query
            assert set(re.findall(r"{{(\w+)}}", legend)) <= grouped, legend


def test_the_dashboard_is_what_the_tool_writes() -> None:
    assert FILE.read_text() == text_of(dashboard())
