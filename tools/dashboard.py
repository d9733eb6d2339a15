"""Writes deploy/grafana/rtp-llm.json, the dashboard of docs/observability.md; --check: says whether it is current."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parent.parent / "deploy" / "grafana" / "rtp-llm.json"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
FREE = 'state=~"free|cached"'
MODEL = 'model=~"$model"'
COLUMNS, WIDTH, HEIGHT = 24, 8, 8


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str  # Grafana's name of it
    queries: dict[str, str]  # legend → PromQL


def rate(metric: str, by: str = "", where: str = "") -> str:
    labels = ", ".join(filter(None, (MODEL, where)))
    return f"sum{f' by ({by})' if by else ''} (rate(rtp_llm_{metric}{{{labels}}}[$__rate_interval]))"


def gauge(metric: str, by: str, where: str = "") -> str:
    labels = ", ".join(filter(None, (MODEL, where)))
    return f"sum by ({by}) (rtp_llm_{metric}{{{labels}}})"


def quantiles(metric: str, by: str = "") -> dict[str, str]:
    legend = f"p{{}} {{{{{by}}}}}" if by else "p{}"
    labels = f"le, {by}" if by else "le"
    return {
        legend.format(percent): f"histogram_quantile({percent / 100}, {rate(f'{metric}_seconds_bucket', labels)})"
        for percent in (50, 90, 99)
    }


def mean(total: str, count: str) -> str:
    return f"{total} / {count}"


def share(part: str, whole: list[str], by: str) -> str:
    return f"{rate(part, by)} / ({' + '.join(rate(each, by) for each in whole)})"


ROWS = {
    "What clients see": [
        Panel("Requests that ended", "reqps", {"{{endpoint}} {{status}}": rate("requests_total", "endpoint, status")}),
        Panel("Time to first token", "s", quantiles("time_to_first_token")),
        Panel("Between tokens", "s", quantiles("inter_token_latency")),
        Panel("Output tokens", "none", {"tokens/s": rate("output_tokens_total")}),
        Panel("An answer, by how it ended", "s", quantiles("request_duration", "outcome")),
        Panel(
            "Phases of an answer, mean",
            "s",
            {"{{phase}}": mean(rate("phase_seconds_sum", "phase"), rate("phase_seconds_count", "phase"))},
        ),
    ],
    "Router": [
        Panel(
            "Answers",
            "none",
            {
                "running {{router}}": gauge("requests_running", "router"),
                "waiting {{router}}": gauge("requests_waiting", "router"),
            },
        ),
        Panel("Workers by state", "none", {"{{pool}} {{state}}": f"max by (pool, state) (rtp_llm_workers{{{MODEL}}})"}),
        Panel(
            "Retries and losses",
            "ops",
            {"{{cause}}": rate("retries_total", "cause"), "worker lost": rate("worker_losses_total")},
        ),
    ],
    "Pools": [
        Panel(
            "Tokens computed",
            "none",
            {
                "prompt {{pool}}": rate("prompt_tokens_computed_total", "pool"),
                "decode {{pool}}": rate("decode_tokens_computed_total", "pool"),
            },
        ),
        Panel(
            "Prompt tokens found in the prefix cache",
            "percentunit",
            {
                "{{pool}}": share(
                    "prefix_hit_tokens_total", ["prefix_hit_tokens_total", "prompt_tokens_computed_total"], "pool"
                )
            },
        ),
        Panel("Steps", "ops", {"{{pool}} {{worker}}": rate("engine_steps_total", "pool, worker")}),
        Panel("Sequences", "none", {"{{state}} {{pool}} {{worker}}": gauge("sequences", "state, pool, worker")}),
        Panel("Prompt tokens that wait", "none", {"{{pool}} {{worker}}": gauge("queued_tokens", "pool, worker")}),
        Panel("Preemptions", "ops", {"{{pool}}": rate("preemptions_total", "pool")}),
    ],
    "KV cache and handover": [
        Panel(
            "KV blocks in use",
            "percentunit",
            {
                "{{pool}} {{worker}}": f"1 - {gauge('kv_blocks', 'pool, worker', FREE)} / {gauge('kv_blocks', 'pool, worker')}"
            },
        ),
        Panel("Handovers", "ops", {"{{outcome}}": rate("transfers_total", "outcome")}),
        Panel(
            "KV received", "Bps", {"{{transport}}": rate("transfer_bytes_total", "transport", 'direction="received"')}
        ),
        Panel(
            "A handover, first message to commit, mean",
            "s",
            {
                "": mean(
                    rate("transfer_seconds_total", where='direction="sent"'),
                    rate("transfers_total", where='outcome="committed_sent"'),
                )
            },
        ),
        Panel("Device memory", "bytes", {"{{tag}} {{worker}}": gauge("device_memory_bytes", "tag, worker")}),
        Panel("Left over when idle", "ops", {"{{worker}}": rate("idle_check_failures_total", "worker")}),
    ],
}


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    y = 0
    for row, members in ROWS.items():
        found.append(
            {"type": "row", "title": row, "collapsed": False, "panels": [], "gridPos": place(0, y, COLUMNS, 1)}
        )
        y += 1
        for number, panel in enumerate(members):
            column, line = number * WIDTH % COLUMNS, number * WIDTH // COLUMNS
            found.append(
                {
                    "type": "timeseries",
                    "title": panel.title,
                    "datasource": DATASOURCE,
                    "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
                    "gridPos": place(column, y + line * HEIGHT, WIDTH, HEIGHT),
                    "targets": [
                        {
                            "refId": chr(ord("A") + index),
                            "datasource": DATASOURCE,
                            "expr": query,
                            "legendFormat": legend,
                        }
                        for index, (legend, query) in enumerate(panel.queries.items())
                    ],
                }
            )
        y += -(-len(members) * WIDTH // COLUMNS) * HEIGHT
    return [{"id": number, **panel} for number, panel in enumerate(found, 1)]


def place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def dashboard() -> dict[str, Any]:
    model = {
        "name": "model",
        "type": "query",
        "datasource": DATASOURCE,
        "query": "label_values(rtp_llm_requests_running, model)",
        "refresh": 2,
        "includeAll": True,
        "multi": True,
    }
    return {
        "uid": "rtp-llm",
        "title": "rtp-llm",
        "schemaVersion": 39,
        "tags": ["rtp-llm"],
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}, model]},
        "panels": panels(),
    }


def text_of(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=1) + "\n"


def main(arguments: list[str]) -> int:
    """Return the exit status."""
    text = text_of(dashboard())
    if arguments == ["--check"]:
        current = FILE.exists() and FILE.read_text() == text
        if not current:
            print(f"{FILE.name} is not current, run `python tools/dashboard.py`")
        return int(not current)
    FILE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
