"""A live view of a running server in the terminal: what its clients see, routers, pools, KV cache, handovers. From /metrics."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rtp_llm.errors import UnavailableError
from rtp_llm.http_client import text_at
from rtp_llm.metrics import samples

HOME_AND_CLEAR = "\x1b[H\x1b[J"
Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Reading:
    """All samples of one moment (seconds, monotonic), by name."""

    at: float
    samples: Mapping[str, Mapping[Labels, float]]

    @classmethod
    def of(cls, text: str, at: float) -> Reading:
        found: dict[str, dict[Labels, float]] = {}
        for name, labels, value in samples(text):
            found.setdefault(name, {})[frozenset(labels.items())] = value
        return cls(at, found)

    def where(self, name: str, labels: Mapping[str, str]) -> Iterator[tuple[Labels, float]]:
        for found, value in self.samples.get(f"rtp_llm_{name}", {}).items():
            if labels.items() <= dict(found).items():
                yield found, value

    def total(self, name: str, **labels: str) -> float:
        return sum(value for _, value in self.where(name, labels))

    def values(self, name: str, label: str, **labels: str) -> list[str]:
        """Of `label`, sorted, among the samples of `name`."""
        return sorted({dict(found).get(label, "") for found, _ in self.where(name, labels)})


@dataclass(frozen=True)
class Interval:
    """What went on between two readings."""

    before: Reading
    after: Reading

    def increase(self, name: str, **labels: str) -> float:
        """A counter that is lower than before has begun anew, at zero."""
        known = self.before.samples.get(f"rtp_llm_{name}", {})
        grown = ((value, known.get(found, 0.0)) for found, value in self.after.where(name, labels))
        return sum(value - old if value >= old else value for value, old in grown)

    def rate(self, name: str, **labels: str) -> float:
        return self.increase(name, **labels) / max(self.after.at - self.before.at, 1e-9)

    def quantile(self, name: str, share: float) -> float | None:
        """The upper bound of the bucket that the quantile lies in; None: nothing was observed."""
        bounds = sorted({float(each) for each in self.after.values(f"{name}_bucket", "le")})
        counts = [self.increase(f"{name}_bucket", le=_as_label(bound)) for bound in bounds]
        if not counts or counts[-1] == 0:
            return None
        return next(bound for bound, count in zip(bounds, counts, strict=True) if count >= share * counts[-1])


def _as_label(bound: float) -> str:
    return "+Inf" if bound == float("inf") else str(bound)


def table(interval: Interval) -> list[str]:
    """The lines of the view."""
    now, rate = interval.after, interval.rate
    lines = [
        f"answers  {now.total('requests_running'):.0f} running, {now.total('requests_waiting'):.0f} waiting for a worker; "
        f"{rate('requests_total'):.1f} requests/s, {rate('output_tokens_total'):.0f} tokens/s, "
        f"{rate('retries_total'):.1f} retries/s",
        f"latency  first token {_quantiles(interval, 'time_to_first_token_seconds')}, "
        f"between tokens {_quantiles(interval, 'inter_token_latency_seconds')}",
        f"handover {rate('transfers_total', outcome='committed_sent'):.1f}/s, "
        f"{_bytes(rate('transfer_bytes_total', direction='received'))}/s; "
        + ", ".join(
            f"{interval.increase('transfers_total', outcome=each):.0f} {words}" for each, words in FAILURES.items()
        ),
        "",
    ]
    routers = [
        [
            router,
            f"{now.total('requests_running', router=router):.0f}",
            f"{now.total('requests_waiting', router=router):.0f}",
        ]
        for router in now.values("requests_running", "router")
    ]
    lines += _aligned([["ROUTER", "RUN", "WAIT"], *routers])
    workers = [
        _worker(interval, pool, worker)
        for pool in now.values("kv_blocks", "pool")
        for worker in now.values("kv_blocks", "worker", pool=pool)
    ]
    head = [
        "POOL",
        "WORKER",
        "RUN",
        "WAIT",
        "QUEUED",
        "KV USED",
        "PROMPT/S",
        "HIT",
        "DECODE/S",
        "STEPS/S",
        "PREEMPTED/S",
    ]
    return [*lines, "", *_aligned([head, *workers])]


FAILURES = {"no_room": "without room", "expired": "expired", "bad_checksum": "damaged"}


def _worker(interval: Interval, pool: str, worker: str) -> list[str]:
    now, one = interval.after, {"pool": pool, "worker": worker}
    blocks = now.total("kv_blocks", **one)
    free = now.total("kv_blocks", state="free", **one) + now.total("kv_blocks", state="cached", **one)
    computed, found = (
        interval.rate(f"{each}_total", **one) for each in ("prompt_tokens_computed", "prefix_hit_tokens")
    )
    return [
        pool,
        worker,
        f"{now.total('sequences', state='running', **one):.0f}",
        f"{now.total('sequences', state='waiting', **one):.0f}",
        f"{now.total('queued_tokens', **one):.0f}",
        f"{1 - free / blocks:.0%}" if blocks else "-",
        f"{computed:.0f}",
        f"{found / (computed + found):.0%}" if computed + found else "-",
        f"{interval.rate('decode_tokens_computed_total', **one):.0f}",
        f"{interval.rate('engine_steps_total', **one):.0f}",
        f"{interval.rate('preemptions_total', **one):.1f}",
    ]


def _quantiles(interval: Interval, name: str) -> str:
    found = [(percent, interval.quantile(name, percent / 100)) for percent in (50, 99)]
    return " ".join(f"p{percent} {'-' if value is None else _seconds(value)}" for percent, value in found)


def _seconds(value: float) -> str:
    """Of a bucket's upper bound."""
    if value == float("inf"):
        return "> 60 s"
    return f"≤ {value:g} s" if value >= 1 else f"≤ {value * 1000:g} ms"


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Texts to the left, numbers to the right; as wide as the widest."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    is_text = [heading in ("ROUTER", "POOL", "WORKER") for heading in rows[0]]
    return [
        "  ".join(
            each.ljust(width) if left else each.rjust(width)
            for each, width, left in zip(row, widths, is_text, strict=True)
        ).rstrip()
        for row in rows
    ]


def watch(url: str, every_s: float, once: bool, say: Callable[[str], None]) -> int:
    """Until Ctrl-C, or for one interval. A server that is away for a moment is said and asked again.

    Raises:
        UnavailableError: it can't be reached at all.
    """
    before = _read(url)
    while True:
        time.sleep(every_s)
        try:
            after = _read(url)
        except UnavailableError as error:
            if once:
                raise
            say(error.message)
            continue
        model = ", ".join(after.values("requests_running", "model"))
        view = "\n".join([f"{url}  {model}  {time.strftime('%H:%M:%S')}", "", *table(Interval(before, after))])
        say(f"{HOME_AND_CLEAR}{view}" if sys.stdout.isatty() and not once else f"{view}\n")
        if once:
            return 0
        before = after


def _read(url: str) -> Reading:
    return Reading.of(text_at(url, "/metrics"), time.monotonic())
