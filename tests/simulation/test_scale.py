"""rtp-llm scale: a trace through the pools of a config file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.cli import main
from rtp_llm.router.placement.step_cost import Step, StepCost
from rtp_llm.simulation.measured import step_cost_of

CONFIG = """
engine: {device: cuda}
router: {ttft_target_ms: 2000}
prefill: {autoscaling: {min: 1, max: 3}}
decode: {autoscaling: {min: 1, max: 2}}
"""


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    rows = [{"timestamp": 100 * i, "input_length": 8192, "output_length": 16, "hash_ids": []} for i in range(300)]
    (tmp_path / "trace.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.yaml").write_text(CONFIG)
    return [
        "scale",
        "--trace",
        str(tmp_path / "trace.jsonl"),
        "--config",
        str(tmp_path / "config.yaml"),
        "--start-s",
        "5",
    ]


def test_it_says_sizes_queue_and_attainment_over_time_and_beside_fixed_sizes(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags, "--fixed", "--json", str(tmp_path / "seen.json")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("300 requests in 30 s on h200, a worker starts in 5 s; TTFT at most 2000 ms, ITL 50 ms")
    assert said[1].split() == ["s", "requests", "waiting", "prefill", "decode", "in", "time"]
    assert any("3.0 ███" in line for line in said)
    assert said[-7].split()[0] == "autoscaled"
    assert {line.split()[0] for line in said[-6:]} == {"1:1", "1:2", "2:1", "2:2", "3:1", "3:2"}
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert len(seen["requests"]) == 300 and seen["summary"].keys() == {line.split()[0] for line in said[-7:]}
    assert seen["summary"]["autoscaled"]["unfinished"] == 0
    assert max(moment["running"]["prefill"] for moment in seen["moments"]) == 3
    met = sum(request["met"] for request in seen["requests"]) / 300
    assert met == pytest.approx(seen["summary"]["autoscaled"]["attainment"])


def test_what_is_too_long_for_the_pools_is_left_out_and_said(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags, "--engine.num-kv-blocks", "128"]) == 1  # of 64 tokens: 8,192
    assert "no request is short enough for a KV pool of 8192 tokens" in capsys.readouterr().err
    assert main([*flags, "--requests", "3", "--longest", "8000", "--engine.num-kv-blocks", "128"]) == 0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--machine", "abacus"], "machine must be one of cpu, h200, got abacus"),
        (["--trace", "nothing.jsonl"], "trace nothing.jsonl: "),
        (["--steps", "nothing.json"], "measured steps nothing.json: "),
        (["--prefill.autoscaling.max", "0"], "prefill.autoscaling.max: Input should be greater than or equal to 1"),
    ],
)
def test_what_is_wrong_is_one_line(
    flags: list[str], more: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags, *more]) == 1
    assert capsys.readouterr().err.startswith(f"rtp-llm: {says}")


def test_pools_of_fixed_size_have_nothing_to_show(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("prefill: {replicas: 2}")
    assert main(flags) == 1
    assert "no pool is autoscaled" in capsys.readouterr().err


COST = StepCost(base_s=0.004, sequence_s=1e-4, context_s=1e-7, row_s=5e-5, pair_s=2e-9)


def measured(file: Path, *kinds: str) -> Path:
    rows: list[dict[str, Any]] = [{"read_gb_per_s": 50.0}]
    for batch in (1, 8, 32):
        for context in (128, 2048):
            ms = COST.decode_s(batch, batch * context) * 1000
            rows.append({"decode": batch, "context": context, "step_ms": ms, "tokens_per_s": 1.0})
    for tokens in (512, 4096):
        rows.append({"prefill": tokens, "median_ms": COST.seconds(Step.of_prompt(tokens)) * 1000})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows if not kinds or kinds[0] in row))
    return file


def test_steps_are_what_bench_engine_has_measured(tmp_path: Path) -> None:
    found = step_cost_of(measured(tmp_path / "steps.json"))
    for name in ("base_s", "sequence_s", "context_s", "row_s", "pair_s"):
        assert getattr(found, name) == pytest.approx(getattr(COST, name), rel=1e-3), name


@pytest.mark.parametrize("missing", ["prefill", "decode"])
def test_steps_of_both_kinds_must_be_measured(
    missing: str, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = measured(tmp_path / "steps.json", "decode" if missing == "prefill" else "prefill")
    assert main([*flags, "--steps", str(file)]) == 1
    assert f"no row has '{missing}'" in capsys.readouterr().err
