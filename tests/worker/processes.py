"""Workers as processes of their own, on a tiny random model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from rtp_llm.wire.key import WorkerKey
from tests.worker.tiny import VOCAB

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "model.load_format": "dummy",
    "model.dtype": "float32",
    "engine.num_kv_blocks": 64,
    "engine.kv_cache_bytes": 0,
    "engine.block_tokens": 8,
    "engine.isa": "generic",
    "transfer.mode": "tcp",
    "handover.router_expiry_s": 2,
}


def write_model(directory: Path) -> Path:
    """config.json of a tiny Llama; its weights are drawn at load."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


class WorkerProcess:
    """A running `python -m rtp_llm.worker`."""

    def __init__(self, process: asyncio.subprocess.Process, hello: dict[str, Any]) -> None:
        self._process = process
        self.key = WorkerKey(hello["id"], hello["epoch"])
        self.address: str = hello["address"]

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def exit_status(self, timeout_s: float = 20.0) -> int:
        return await asyncio.wait_for(self._process.wait(), timeout_s)


@contextlib.asynccontextmanager
async def worker_process(pool: str, model: Path, **settings: Any) -> AsyncIterator[WorkerProcess]:
    """Ends by kill if the test hasn't ended it."""
    chosen = SETTINGS | {"model.path": str(model)} | {k.replace("__", "."): v for k, v in settings.items()}
    flags = [flag for path, value in chosen.items() for flag in ("--set", f"{path}={value}")]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rtp_llm.worker", "--pool", pool, "--id", f"{pool}-0", "--parent-pipe", *flags),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 60)
        assert line, f"worker {pool} ended with {await process.wait()}"
        yield WorkerProcess(process, json.loads(line))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
