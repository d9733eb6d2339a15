"""Whether the product simulator says what a real server does: three points on this machine's CPU, one command.

    python benchmarks/simulator_check.py [--rounds 3] [--seconds 60]

Two worker processes of one thread each, a router and a client, for the shape MODEL with random weights; open loop, Poisson
arrivals, as `rtp-llm bench serve` sends them. Each point is then simulated: the same policy, the same arrivals, steps as long
as this run's own steps took (from the workers' Loads, fitted as docs/placement.md says). Points take turns; what counts is
the median over the rounds of real / simulated. Beside it: how long workers stood in the run queue, of the time that they ran.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rtp_llm.config import DEMO_MODEL
from rtp_llm.load.client import Outcome, run
from rtp_llm.load.report import percentile
from rtp_llm.load.workload import Arrival, Lengths, random_prompts
from rtp_llm.router.placement import DECODE, PREFILL, Policy, StepMeasured
from rtp_llm.router.placement.cost import Cost
from rtp_llm.router.placement.round_robin import RoundRobin
from rtp_llm.router.placement.step_cost import Step, StepCost
from rtp_llm.simulation.clock import Clock
from rtp_llm.simulation.cluster import SimulatedCluster
from rtp_llm.simulation.goal import Goal
from rtp_llm.simulation.request import SimulatedRequest
from rtp_llm.simulation.worker import Engine
from tests.cluster.cluster import Cluster

MODEL = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
NAME = "random"
VOCABULARY = 2000
LEAST_REQUESTS = 20
WARM_UP = 0.2  # of the requests aren't judged
BLOCK_TOKENS, KV_TOKENS, CHUNK, SLOTS = 16, 32_768, 512, 64
KV_BYTES_PER_TOKEN = 2 * 2 * 64 * 2 * 12  # two heads of 64, bfloat16, K and V, 12 layers
WIRE_BYTES_PER_S = 1e9
ITL_TARGET_S, TTFT_TARGET_S = 0.1, 1.5
SETTINGS: dict[str, Any] = {
    "model.served_name": NAME,
    "model.load_format": "dummy",
    "engine.num_threads": 1,
    "engine.block_tokens": BLOCK_TOKENS,
    "engine.kv_cache_bytes": KV_TOKENS * KV_BYTES_PER_TOKEN,
    "engine.max_num_batched_tokens": CHUNK,
    "engine.max_num_seqs": SLOTS,
    "engine.itl_target_ms": 1000 * ITL_TARGET_S,
    "router.ttft_target_ms": 1000 * TTFT_TARGET_S,
    "transfer.mode": "shm",
}


@dataclass(frozen=True)
class Point:
    name: str
    pools: tuple[int, int]  # prefill and decode workers
    policy: str
    prompt_tokens: int
    output_tokens: int
    load: float  # of what two undivided workers answer when everything is there at once


POINTS = (
    Point("undivided", (2, 0), "round_robin", 128, 32, 0.3),
    Point("split", (1, 1), "round_robin", 128, 64, 0.15),
    Point("cost", (1, 1), "cost", 256, 32, 0.35),
)
TRIAL = Point("trial", (2, 0), "round_robin", 128, 32, 0.0)  # shows what steps take, for the rates
TRIAL_RATE, TRIAL_REQUESTS = 1.0, 16


class Steps:
    """In place of StepsSeen: all steps that Loads tell of."""

    def __init__(self) -> None:
        self.seen: list[StepMeasured] = []

    def observe(self, pool: str, measured: StepMeasured, now: float) -> None:
        self.seen.append(measured)

    def cost(self) -> StepCost:
        """Decode first: a prefill step is told by what it takes beyond. Steps that scatter are fitted too short, since what
        is least is an error relative to what they took; so all are as much longer as makes the sum right."""
        by_kind = [
            [each for each in self.seen if (each.step.prefill_rows > 0) == prefills] for prefills in (False, True)
        ]
        found = StepCost()
        for measured in chain(*by_kind):
            found.observe(measured.step, measured.seconds)
        decode = longer(found, by_kind[0])
        base, sequence, context = (decode * each for each in (found.base_s, found.sequence_s, found.context_s))
        found = StepCost(base_s=base, sequence_s=sequence, context_s=context, row_s=found.row_s, pair_s=found.pair_s)
        prefill = longer(found, by_kind[1])
        found.row_s, found.pair_s = prefill * found.row_s, prefill * found.pair_s
        return found


def longer(cost: StepCost, steps: Sequence[StepMeasured]) -> float:
    """What they took, of what they should."""
    return sum(each.seconds for each in steps) / sum(cost.seconds(each.step) for each in steps)


@dataclass(frozen=True)
class Times:
    """Of one run's requests after the warm-up, in seconds."""

    ttft: Sequence[float]
    itl: Sequence[float]
    goodput: float

    def figures(self) -> dict[str, float]:
        return {
            "ttft_p50": percentile(self.ttft, 50),
            "ttft_mean": statistics.fmean(self.ttft),
            "itl_mean": statistics.fmean(self.itl),
            "goodput": self.goodput,
        }


@dataclass(frozen=True)
class Real:
    outcomes: list[Outcome]
    steps: Steps
    waited: float  # in the run queue, of the time that workers ran

    def times(self, goal: Goal) -> Times:
        judged = self.outcomes[int(WARM_UP * len(self.outcomes)) :]
        if any(not each.ok for each in judged):
            raise SystemExit(f"requests failed: {[each.error for each in judged if not each.ok][:3]}")
        asked = [_request(n, 0.0, each.prompt_tokens, each.wanted_tokens) for n, each in enumerate(judged)]
        itl = [each.token_s or 0.0 for each in judged]
        ttft = [each.first_token_s for each in judged]
        met = [
            t <= (targets := goal.targets(each))[0] and i <= targets[1]
            for t, i, each in zip(ttft, itl, asked, strict=True)
        ]
        return Times(ttft, itl, sum(met) / len(met))


async def served(point: Point, arrivals: Sequence[Arrival], model: Path, logs: Path) -> Real:
    settings = {**SETTINGS, "model.path": str(model), "router.policy": point.policy}
    prefill, decode = point.pools
    async with Cluster.running(prefill=prefill, decode=decode, log_dir=logs, settings=settings) as cluster:
        steps = Steps()
        cluster.service.dispatcher.steps_seen = steps  # type: ignore[assignment]
        warm = list(random_prompts(8, float("inf"), Lengths(64, 256), Lengths(8, 8), VOCABULARY, seed=9))
        await run(cluster.url, NAME, warm, None, lambda outcome: None)
        pids = [worker.pid for worker in cluster.workers]
        before = [scheduled(pid) for pid in pids]
        outcomes = await run(cluster.url, NAME, arrivals, None, lambda outcome: None)
        after = [scheduled(pid) for pid in pids]
    ran, waited = (sum(late[i] - early[i] for early, late in zip(before, after, strict=True)) for i in (0, 1))
    return Real(outcomes, steps, waited / max(ran, 1e-9))


def scheduled(pid: int) -> tuple[float, float]:
    """Seconds that its threads ran, and that they waited for a core."""
    ran = waited = 0.0
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        on, off, _ = map(int, file.read_text().split())
        ran, waited = ran + on / 1e9, waited + off / 1e9
    return ran, waited


def engine_of(cost: StepCost) -> Engine:
    return Engine(
        cost=cost,
        kv_tokens=KV_TOKENS,
        kv_bytes_per_token=KV_BYTES_PER_TOKEN,
        wire_bytes_per_s=WIRE_BYTES_PER_S,
        max_num_batched_tokens=CHUNK,
        max_num_seqs=SLOTS,
        block_tokens=BLOCK_TOKENS,
        itl_target_s=ITL_TARGET_S,
    )


def saturated_rate(point: Point, cost: StepCost) -> float:
    """Of two undivided workers, in requests a second."""
    clock, count = Clock(), 100
    cluster = SimulatedCluster(RoundRobin(), {"w0": PREFILL, "w1": PREFILL}, engine_of(cost), clock)
    cluster.ask([_request(n, 0.0, point.prompt_tokens, point.output_tokens) for n in range(count)])
    clock.run()
    ends = sorted(each.last_token or 0.0 for each in cluster.requests)
    return count / 2 / (ends[3 * count // 4] - ends[count // 4])


def simulated(point: Point, arrivals: Sequence[Arrival], cost: StepCost) -> Times:
    policies: dict[str, Callable[[], Policy]] = {
        "round_robin": RoundRobin,
        "cost": lambda: Cost(ttft_target_s=TTFT_TARGET_S, itl_target_s=ITL_TARGET_S, known=cost),
    }
    clock, (prefill, decode) = Clock(), point.pools
    pools = {f"{pool}-{n}": pool for pool, count in ((PREFILL, prefill), (DECODE, decode)) for n in range(count)}
    cluster = SimulatedCluster(policies[point.policy](), pools, engine_of(cost), clock)
    cluster.ask([_request(n, each.due_s, len(each.prompt), each.output_tokens) for n, each in enumerate(arrivals)])
    clock.run()
    judged = cluster.requests[int(WARM_UP * len(cluster.requests)) :]
    return Times([each.ttft for each in judged], [each.itl for each in judged], Goal(cost=cost).goodput(judged))


def _request(number: int, arrival: float, prompt: int, output: int) -> SimulatedRequest:
    return SimulatedRequest(number=number, arrival=arrival, prompt_tokens=prompt, output_tokens=output)


def arrivals_of(point: Point, rate: float, count: int, seed: int) -> list[Arrival]:
    prompt, output = (Lengths(tokens, tokens) for tokens in (point.prompt_tokens, point.output_tokens))
    return list(random_prompts(count, rate, prompt, output, VOCABULARY, seed))


def make_model(directory: Path) -> None:
    for file in Path(DEMO_MODEL).glob("*.json"):
        shutil.copy(file, directory)
    config = json.loads((directory / "config.json").read_text()) | MODEL
    config["layer_types"] = None
    (directory / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if value is not None})
    )


async def compare(options: argparse.Namespace, directory: Path) -> list[dict[str, Any]]:
    model, logs = directory / "model", directory / "logs"
    model.mkdir()
    logs.mkdir()
    make_model(model)
    trial = await served(TRIAL, arrivals_of(TRIAL, TRIAL_RATE, TRIAL_REQUESTS, seed=0), model, logs)
    rates = {point.name: point.load * saturated_rate(point, trial.steps.cost()) for point in POINTS}
    rows = []
    for round_ in range(options.rounds):
        for point in POINTS:
            rate = rates[point.name]
            arrivals = arrivals_of(point, rate, max(round(rate * options.seconds), LEAST_REQUESTS), seed=round_)
            real = await served(point, arrivals, model, logs)
            cost = real.steps.cost()
            row = {
                "point": point.name,
                "round": round_,
                "requests": len(arrivals),
                "rate": rate,
                "load_average": os.getloadavg()[0],
                "waited_for_a_core": real.waited,
                "steps": len(real.steps.seen),
                "step_ms": [
                    1e3 * cost.decode_s(1, point.prompt_tokens),
                    1e3 * cost.seconds(Step.of_prompt(point.prompt_tokens)),
                ],
                "real": real.times(Goal(cost=cost)).figures(),
                "simulated": simulated(point, arrivals, cost).figures(),
            }
            rows.append(row)
            print(line(row), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    pairs = [f"{name} {row['real'][name]:.4g}/{row['simulated'][name]:.4g}" for name in row["real"]]
    decode_ms, prompt_ms = row["step_ms"]
    return (
        f"{row['point']:>10} {row['requests']:4} requests, {row['rate']:.2f}/s  decode {decode_ms:.1f} ms  "
        f"prompt {prompt_ms:.0f} ms  {'  '.join(pairs)}  load {row['load_average']:.1f}  waited {row['waited_for_a_core']:.2f}"
    )


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """real / simulated by point and figure, the median over the rounds."""
    found: dict[str, dict[str, float]] = {}
    for point in dict.fromkeys(row["point"] for row in rows):
        of_point = [row for row in rows if row["point"] == point]
        found[point] = {
            name: statistics.median(row["real"][name] / max(row["simulated"][name], 1e-9) for row in of_point)
            for name in of_point[0]["real"]
        }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="of arrivals, a point and round: 20 requests at least"
    )
    parser.add_argument("--within", type=float, default=0.15)
    parser.add_argument("--json", type=Path, help="an object a point and round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        rows = asyncio.run(compare(options, Path(directory)))
    if options.json is not None:
        options.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    met = True
    print(f"{'real / simulated':>16}  " + "  ".join(f"{name:>9}" for name in rows[0]["real"]))
    for point, found in ratios(rows).items():
        print(f"{point:>16}  " + "  ".join(f"{value:9.3f}" for value in found.values()))
        met &= all(abs(value - 1) <= options.within for value in found.values())
    print(f"within {options.within:.0%}: {'yes' if met else 'NO'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
