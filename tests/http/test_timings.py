"""Where the time to a first token went: the same in the body, in the histograms and in the access log."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import Cluster

TO_FIRST = ("prepare", "queue", "worker_queue", "prefill", "first_token")
BODY: dict[str, Any] = {"max_tokens": 12, "ignore_eos": True, "n": 2, "return_timings": True}


@pytest.mark.parametrize("decode", [0, 1], ids=["alone", "handed-over"])
async def test_phases_add_up_to_the_time_to_the_first_token(
    decode: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rtp_llm.access")
    async with Cluster.running(prefill=1, decode=decode, log_dir=tmp_path) as cluster:
        timings = []
        for number in range(3):
            body = BODY | {"prompt": [20 + number] * 300, "seed": number}
            response = await cluster.client.post("/v1/completions", json=body)
            timings += (found := response.json()["usage"]["timings"])
            [*_, line] = caplog.messages
            logged = sorted(json.loads(line)["answers"], key=lambda each: each["key"])
            assert [{f"{name}_ms": ms for name, ms in each["ms"].items()} for each in logged] == found
        async with cluster.client.stream(
            "POST", "/v1/completions", json=BODY | {"prompt": [9], "stream": True}
        ) as stream:
            events = [json.loads(line[6:]) async for line in stream.aiter_lines() if line[:7] == "data: {"]
        timings += events[-1]["usage"]["timings"]
        figures = await cluster.figures()

    phases = [*TO_FIRST, *(["handover", "wire", "verify"] if decode else []), "decode"]
    assert len(timings) == 8
    for each in timings:
        assert list(each) == [f"{name}_ms" for name in phases]
        assert min(each.values()) >= 0 and each["prefill_ms"] > 0
        assert not decode or each["verify_ms"] > 0
    for name in phases:
        seconds = figures.value("phase_seconds_sum", phase=name)
        assert seconds * 1e3 == pytest.approx(sum(each[f"{name}_ms"] for each in timings), abs=0.1)
        assert figures.value("phase_seconds_count", phase=name) == 8
    to_first = sum(figures.value("phase_seconds_sum", phase=name) for name in TO_FIRST)
    assert to_first == pytest.approx(figures.value("time_to_first_token_seconds_sum"), abs=1e-6)
