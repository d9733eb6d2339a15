"""`rtp-llm bench engine` on the demo model: rows of each table, nothing left running, a plan without room refused."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from rtp_llm import bench, cli
from rtp_llm.bench import Bench, Cost, EngineRun, Outputs, Plan, bench_engine
from rtp_llm.config import DEMO_MODEL, load_config
from rtp_llm.engine import build
from rtp_llm.errors import ConfigError
from rtp_llm.model.config import read_model_config


@pytest.fixture(autouse=True)
def _a_short_look_at_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.READ_BYTES, "cpu", 16 << 20)


def test_each_table_has_its_rows_and_the_file_has_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "bench engine --decode 1,3 --prefill 40 --saturated 64 --context 20 --steps 8 --engine.max-num-seqs 4"
    assert cli.main([*arguments.split(), "--json", str(tmp_path / "rows")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert [next(iter(row)) for row in rows] == ["engine", "decode", "decode", "prefill", "saturated"]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [next(iter(row)) for row in rows]
    head, one, three = rows[:3]
    assert (one["decode"], three["decode"]) == (1, 3)
    for row in (one, three):
        assert row["of_limit"] == pytest.approx(row["limit_ms"] / row["step_ms"])
        assert row["tokens_per_s"] == pytest.approx(row["decode"] / row["step_ms"] * 1e3)
        read = row["limit_ms"] / 1e3 * head["read_gb_per_s"] * 1e9
        context = (read - head["weight_bytes"]) / row["decode"] / head["kv_bytes_per_token"]
        assert context == pytest.approx(row["context"], abs=0.51)
        assert row["context"] > 20


def test_the_bytes_of_a_step_are_those_of_the_checkpoints_matrices() -> None:
    config = load_config(overrides={"engine.num_kv_blocks": 8}, environ={})
    model = read_model_config(DEMO_MODEL)
    cost = Cost.of(model, build(config.model, config.engine))
    (path,) = Path(DEMO_MODEL).glob("*.safetensors")
    with safe_open(path, "np") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    assert model.tie_word_embeddings  # the head reads what the embedding looks up
    assert cost.weight_bytes == 2 * sum(shape[0] * shape[1] for shape in shapes.values() if len(shape) == 2)
    q = model.num_attention_heads * model.head_dim
    parameters = cost.weight_bytes / 2 - model.vocab_size * model.hidden_size
    scores = 3 * (1 + 2 + 3) * q * 2 * 2 * model.num_hidden_layers / 3  # q·k and p·v of positions 0, 1, 2
    assert cost.prefill_flops(3) == 6 * parameters + 2 * model.vocab_size * model.hidden_size + scores


class WokenEarly(EngineRun):
    """The first wakeup after each request brings nothing."""

    tokens, _early = 0, False

    def add(self, spec: Any) -> int:
        self._early = True
        return super().add(spec)

    def next(self, timeout_s: float | None = None) -> Outputs | None:
        if self._early:
            self._early = False
            return Outputs(time.perf_counter(), Counter(), frozenset())
        seen = super().next(timeout_s)
        self.tokens += seen.tokens.total() if seen else 0
        return seen


def test_a_wakeup_that_brings_no_token_ends_no_prefill() -> None:
    config = load_config(environ={})
    native = build(config.model, config.engine)
    model = read_model_config(DEMO_MODEL)
    run = WokenEarly(native, model.vocab_size)
    try:
        Bench(run, Cost.of(model, native), 1e10, 64).prefill(16, rounds=4)
    finally:
        run.close()
    assert run.tokens == 4


def test_prompts_arrive_while_a_batch_decodes() -> None:
    config = load_config(overrides={"engine.max_num_seqs": 3}, environ={})
    native = build(config.model, config.engine)
    model = read_model_config(DEMO_MODEL)
    run = EngineRun(native, model.vocab_size)
    try:
        row = Bench(run, Cost.of(model, native), 1e10, 64).mixed(2, 16, seconds=1.0, longest=96)
        native.check_idle()
    finally:
        run.close()
    assert row["mixed"] == 2 and row["prompts"] > 0
    assert row["limit_ms"] == row["step_ms"] + row["chunk_ms"]
    assert 0 < row["itl_p50_ms"] <= row["itl_p99_ms"]


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (Plan(decode=(5,)), "a batch of 5 is to be measured, engine.max_num_seqs is 4"),
        (Plan(decode=(1,), context=240, steps=30), "sequences of 280 tokens are to be measured, the engine's longest"),
        (Plan(decode=(4,), context=60, steps=10), "4 sequences of 83 tokens are to be measured, the KV pool holds 256"),
        (
            Plan(decode=(), prefill=(256,)),
            "a prompt of 256 tokens is to be measured, the engine's longest request is 256",
        ),
    ],
)
def test_a_plan_without_room_is_refused(plan: Plan, said: str) -> None:
    config = load_config(
        overrides={"engine.max_num_seqs": 4, "engine.num_kv_blocks": 16, "model.max_model_len": 256}, environ={}
    )
    with pytest.raises(ConfigError) as refused:
        bench_engine(config, plan, lambda line: None)
    assert said in refused.value.message
