"""Figures: the samples of one scrape, by name and labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

# What reads zero in a worker that has nothing to do.
AT_REST = (
    ("kv_blocks", {"state": "referenced"}),
    ("kv_blocks", {"state": "granted"}),
    ("kv_blocks", {"state": "quarantined"}),
    ("kv_blocks", {"state": "gated"}),
    ("sequences", {}),
    ("queued_tokens", {}),
    ("transfer_outstanding", {}),
    ("idle_check_failures_total", {}),
)
# What reads zero in a router that has nothing to do.
ROUTER_AT_REST = (("requests_running", {}), ("requests_waiting", {}))


@dataclass(frozen=True)
class Figures:
    """`value("kv_blocks", state="free")` sums all samples of that name with these labels."""

    samples: Mapping[tuple[str, frozenset[tuple[str, str]]], float]

    @classmethod
    def parse(cls, text: str) -> Figures:
        return cls(
            {
                (sample.name.removeprefix("rtp_llm_"), frozenset(sample.labels.items())): sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }
        )

    def value(self, name: str, **labels: str) -> float:
        wanted = labels.items()
        return sum(value for (found, have), value in self.samples.items() if found == name and wanted <= set(have))

    def has(self, name: str) -> bool:
        return any(found == name for found, _ in self.samples)

    def not_at_rest(self) -> dict[str, float]:
        """What a resting worker has left over."""
        return self._unequal_zero(AT_REST)

    def router_not_at_rest(self) -> dict[str, float]:
        return self._unequal_zero(ROUTER_AT_REST)

    def _unequal_zero(self, rows: tuple[tuple[str, dict[str, str]], ...]) -> dict[str, float]:
        missing = [name for name, _ in rows if not self.has(name)]
        assert not missing, f"no such metric: {missing}"
        found = {f"{name} {labels}": self.value(name, **labels) for name, labels in rows}
        return {name: value for name, value in found.items() if value}
