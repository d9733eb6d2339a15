"""What a run has shown: a table, JSON, a plot."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rtp_llm.errors import UnavailableError
from rtp_llm.load.client import Outcome

PERCENTS = (50, 90, 99)


@dataclass(frozen=True)
class Objective:
    """Seconds; None: any. A request meets it with both its first token and its mean token time within."""

    first_token_s: float | None = None
    token_s: float | None = None

    def met_by(self, outcome: Outcome) -> bool:
        if not outcome.ok:
            return False
        if self.first_token_s is not None and outcome.first_token_s > self.first_token_s:
            return False
        return self.token_s is None or outcome.token_s is None or outcome.token_s <= self.token_s


def percentile(values: Sequence[float], percent: float) -> float:
    """By nearest rank. REQUIRES: there are some."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1]


def summary(outcomes: Sequence[Outcome], objective: Objective) -> dict[str, Any]:
    """Times in seconds, rates a second of the time from the first request that was due to the last that ended."""
    good = [each for each in outcomes if each.ok]
    wall = max((each.ended for each in outcomes), default=0.0) - min((each.due for each in outcomes), default=0.0)
    found: dict[str, Any] = {
        "requests": len(outcomes),
        "failed": len(outcomes) - len(good),
        "errors": dict(Counter(each.error for each in outcomes if not each.ok).most_common(5)),
        "seconds": wall,
        "prompt_tokens": sum(each.prompt_tokens for each in good),
        "cached_tokens": sum(each.cached_tokens for each in good),
        "output_tokens": sum(each.tokens for each in good),
        "short": sum(each.tokens < each.wanted_tokens for each in good),
    }
    for name in ("requests", "prompt_tokens", "output_tokens"):
        ended = len(good) if name == "requests" else found[name]
        found[f"{name}_per_s"] = ended / wall if wall > 0 else 0.0
    times = {
        "first_token_s": [each.first_token_s for each in good],
        "token_s": [each.token_s for each in good if each.token_s is not None],
        "gap_s": [gap for each in good for gap in each.gaps()],
        "request_s": [each.ended - each.due for each in good],
        "sent_late_s": [each.sent - each.due for each in outcomes],
    }
    for name, values in times.items():
        found[name] = None
        if values:
            found[name] = {"mean": statistics.fmean(values), "max": max(values)}
            found[name] |= {f"p{percent}": percentile(values, percent) for percent in PERCENTS}
    met = sum(map(objective.met_by, outcomes))
    found["objective"] = asdict(objective)
    found["met"] = met
    found["goodput_per_s"] = met / wall if wall > 0 else 0.0
    return found


def table(found: dict[str, Any]) -> list[str]:
    lines = [
        f"{found['requests']} requests in {found['seconds']:.1f} s, {found['failed']} failed, "
        f"{found['short']} shorter than asked",
        f"{found['requests_per_s']:.2f} requests/s, {found['output_tokens_per_s']:.0f} output tokens/s, "
        f"{found['prompt_tokens_per_s']:.0f} prompt tokens/s ({found['cached_tokens']} of {found['prompt_tokens']} cached)",
    ]
    lines += [f"  {count} × {error}" for error, count in found["errors"].items()]
    names = {
        "first_token_s": "first token, from when it was due",
        "token_s": "a token after the first, mean of a request",
        "gap_s": "between events of a stream",
        "request_s": "whole request",
        "sent_late_s": "sent after it was due (the client's own)",
    }
    heads = ["mean", *(f"p{percent}" for percent in PERCENTS), "max"]
    lines.append(f"{'milliseconds':42}" + "".join(f"{head:>10}" for head in heads))
    for name, words in names.items():
        if found[name] is not None:
            lines.append(f"{words:42}" + "".join(f"{found[name][head] * 1000:10.1f}" for head in heads))
    if any(value is not None for value in found["objective"].values()):
        lines.append(
            f"within the objective: {found['met']} of {found['requests']}, goodput {found['goodput_per_s']:.2f} requests/s"
        )
    return lines


def write_json(path: Path, workload: dict[str, Any], found: dict[str, Any], outcomes: Sequence[Outcome]) -> None:
    """One object: `workload`, `summary`, and a row a request."""
    path.write_text(
        json.dumps({"workload": workload, "summary": found, "requests": [asdict(each) for each in outcomes]}) + "\n"
    )


def plot(path: Path, outcomes: Sequence[Outcome]) -> None:
    """First tokens over time, and the distribution of gaps.

    Raises:
        UnavailableError: matplotlib isn't installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnavailableError("--plot needs matplotlib: pip install 'rtp-llm[plot]'") from error
    good = [each for each in outcomes if each.ok]
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.scatter([each.due for each in good], [each.first_token_s * 1000 for each in good], s=6)
    left.set(xlabel="due, s", ylabel="first token, ms", yscale="log")
    gaps = sorted(gap * 1000 for each in good for gap in each.gaps())
    right.plot(gaps, [(number + 1) / len(gaps) for number in range(len(gaps))])
    right.set(xlabel="between events, ms", ylabel="share", xscale="log")
    figure.savefig(path)
