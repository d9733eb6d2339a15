"""Every metric's name, type, labels and buckets, in one file. Prometheus' conventions; prefix `rtp_llm_`.

A process makes its own `Metrics` (one registry); /metrics of whichever router is asked shows those of all routers (label
router) and all workers (labels pool and worker), each with the label model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

disable_created_metrics()  # type: ignore[no-untyped-call]  # one more gauge beside each counter and histogram, which nobody reads


class RouterMetrics:
    """What a router counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"rtp_llm_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, labels: tuple[str, ...] = ()) -> Histogram:
            return Histogram(f"rtp_llm_{name}", text, labels, buckets=SECONDS, registry=registry)

        self.requests = counter(
            "requests", "HTTP requests by endpoint and status when they end", ("endpoint", "status")
        )
        self.requests_running = Gauge("rtp_llm_requests_running", "answers being made", registry=registry)
        self.requests_waiting = Gauge("rtp_llm_requests_waiting", "answers waiting for a worker", registry=registry)
        self.prompt_tokens = counter(
            "prompt_tokens", "prompt tokens of accepted requests, a prompt with n answers once"
        )
        self.output_tokens = counter("output_tokens", "tokens emitted to clients")
        self.tenant_output_tokens = counter(
            "tenant_output_tokens", "tokens emitted, by the name of the API key that asked for them", ("tenant",)
        )
        self.tenant_requests_waiting = Gauge(
            "rtp_llm_tenant_requests_waiting",
            "answers waiting for a worker, by the name of the API key that asked for them",
            ("tenant",),
            registry=registry,
        )
        self.tenant_refusals = counter(
            "tenant_refusals",
            "requests refused, by the name of their API key; queue: too many wait, deadline: they would be late",
            ("tenant", "cause"),
        )
        self.time_to_first_token = histogram("time_to_first_token_seconds", "from the request's arrival to first token")
        self.inter_token_latency = histogram("inter_token_latency_seconds", "between tokens of one answer")
        self.request_duration = histogram(
            "request_duration_seconds", "of an answer, from the request's arrival, by how it ended", ("outcome",)
        )
        self.phase_duration = histogram(
            "phase_seconds",
            "prepare, queue, worker_queue, prefill and first_token add up to the time to the first token; handover, wire, "
            "verify, decode",
            ("phase",),
        )
        self.retries = counter("retries", "attempts after the first, by cause", ("cause",))
        self.stored_responses = Gauge(
            "rtp_llm_stored_responses", "responses of /v1/responses that are kept", registry=registry
        )
        self.stored_responses_bytes = Gauge(
            "rtp_llm_stored_responses_bytes", "memory that they take, about", registry=registry
        )
        self.workers = Gauge(
            "rtp_llm_workers", "members of the fleet by pool and state", ("pool", "state"), registry=registry
        )
        self.worker_losses = counter("worker_losses", "workers declared lost")
        self.numerics_mismatches = counter("numerics_mismatches", "placements over unequal numerics_id")


class WorkerMetrics:
    """What a worker counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"rtp_llm_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"rtp_llm_{name}", text, labels, registry=registry)

        self.prompt_tokens_computed = counter("prompt_tokens_computed", "rows computed in prefill form")
        self.decode_tokens_computed = counter("decode_tokens_computed", "rows computed in decode form")
        self.prefix_hit_tokens = counter("prefix_hit_tokens", "prompt tokens found in the prefix cache")
        self.preemptions = counter("preemptions", "sequences preempted and requeued")
        self.engine_steps = counter("engine_steps", "steps with rows")
        self.kv_blocks = gauge("kv_blocks", "blocks of the KV pool by state", ("state",))
        self.kv_pool_tokens = gauge("kv_pool_tokens", "tokens that the KV pool holds")
        self.max_model_len = gauge("max_model_len", "tokens of the longest request, prompt and answer")
        self.sequences = gauge("sequences", "sequences by state", ("state",))
        self.queued_tokens = gauge("queued_tokens", "prompt tokens that wait")
        self.transfer_bytes = counter("transfer_bytes", "KV payload over UCX", ("direction", "transport"))
        self.transfer_messages = counter("transfer_messages", "KV messages over UCX", ("direction", "transport"))
        self.transfer_seconds = counter("transfer_seconds", "from first message to commit", ("direction",))
        self.transfers = counter("transfers", "handovers by outcome", ("outcome",))
        self.transfer_outstanding = gauge("transfer_outstanding", "sends and receives in flight", ("direction",))
        self.device_memory_bytes = gauge("device_memory_bytes", "allocations by what they are for", ("tag",))
        self.numerics_mismatches = counter("peer_numerics_mismatches", "peers met with an unequal numerics_id")
        self.idle_check_failures = counter("idle_check_failures", "times that an idle worker had something left over")


class Totals:
    """Counters whose value is counted elsewhere: raises each to the total that it is told."""

    def __init__(self) -> None:
        self._last: dict[int, float] = {}  # by identity: children of a labelled counter live as long as it

    def raise_to(self, counter: Counter, total: float) -> None:
        counter.inc(total - self._last.get(id(counter), 0))
        self._last[id(counter)] = total


def new_registry() -> CollectorRegistry:
    """An empty registry: one a process, or one a test."""
    return CollectorRegistry()


def exposition(registry: CollectorRegistry) -> bytes:
    """Prometheus' text form."""
    return generate_latest(registry)


def merged(common: Mapping[str, str], texts: Iterable[tuple[Mapping[str, str], str]]) -> bytes:
    """One text of many: [(labels of its process, its text)]. All samples get their process's labels and those in `common`;
    families that several have become one."""
    families: dict[str, Metric] = {}
    for labels, text in sorted(texts, key=lambda each: sorted(each[0].items())):
        for family in text_string_to_metric_families(text):
            into = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            into.samples += [sample._replace(labels={**sample.labels, **labels, **common}) for sample in family.samples]
    return generate_latest(_Collected(families.values()))


def readings(text: str, name: str, label: str) -> dict[str, float]:
    """{value of `label`: the largest sample} of the family `name` in Prometheus' text."""
    found: dict[str, float] = {}
    for sample, labels, value in samples(text):
        if sample == name:
            key = labels.get(label, "")
            found[key] = max(found.get(key, value), value)
    return found


def samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """(name, labels, value) of each in Prometheus' text."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


class _Collected:
    """Families as generate_latest wants them."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
