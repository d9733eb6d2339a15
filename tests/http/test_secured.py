"""A cluster with everything that keeps others out: TLS both ways, a token out of a file, API keys."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.cluster import Cluster
from tests.cluster.workload import Answer, Undivided, bodies
from tests.wire.authority import Authority


async def test_prefill_here_and_decode_there_behind_tls_token_and_keys(tmp_path: Path) -> None:
    files = {"token": "s3cret\n", "users": "alice a-key\n", "admin": "r00t\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    settings = {f"worker.{name}": path for name, path in Authority(tmp_path).settings().items()} | {
        "worker.token_file": str(tmp_path / "token"),
        "http.api_keys_file": str(tmp_path / "users"),
        "http.admin_key_file": str(tmp_path / "admin"),
    }
    [body] = bodies(1, seed=3, prompt_tokens=(200,), max_tokens=(40,))
    async with Cluster.running(log_dir=tmp_path, settings=settings) as cluster:
        refused = await cluster.stream(body).finished()
        assert refused.error is not None and refused.error["code"] == "invalid_api_key"
        cluster.client.headers["Authorization"] = "Bearer a-key"
        answer = Answer.of(await cluster.stream(body).finished())
        cluster.client.headers["Authorization"] = "Bearer r00t"
        figures = await cluster.figures()
    assert figures.value("transfer_bytes_total", direction="received") > 0
    assert figures.value("tenant_output_tokens_total", tenant="alice") == len(answer.tokens)
    with Undivided.engine() as engine:
        assert answer == engine.answer(body)
