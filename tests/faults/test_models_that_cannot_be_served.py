"""A worker whose model can't be served says what is wrong with which file, and ends with status 2."""

from __future__ import annotations

import asyncio
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.config import DEMO_MODEL
from tests.cluster.worker_process import spawn

END_TIMEOUT_S = 60.0
NORM = "model.layers.3.input_layernorm.weight"


def configured(**changes: Any) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, **changes}))

    return damage


def truncated(model: Path) -> None:
    file = model / "model.safetensors"
    with file.open("r+b") as weights:
        weights.truncate(file.stat().st_size - 1000)


def with_header(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        file = model / "model.safetensors"
        content = file.read_bytes()
        [length] = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return damage


def reshaped(header: dict[str, Any]) -> None:
    [size] = header[NORM]["shape"]
    header[NORM]["shape"] = [size // 2, 2]


def renamed(header: dict[str, Any]) -> None:
    header["model.layers.3.somebody_elses.weight"] = header.pop(NORM)


def without_a_tensor(model: Path) -> None:
    file = model / "model.safetensors"
    content = file.read_bytes()
    [length] = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    kept: dict[str, Any] = {}
    out = b""
    for name, entry in header.items():
        if name in (NORM, "__metadata__"):
            continue
        begin, end = entry["data_offsets"]
        kept[name] = {**entry, "data_offsets": [len(out), len(out) + end - begin]}
        out += data[begin:end]
    text = json.dumps(kept).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + out)


def without_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def without_json(model: Path) -> None:
    (model / "config.json").write_text("{ this is not JSON")


CASES = {
    "an unknown architecture": (
        configured(architectures=["MambaForCausalLM"]),
        "UnsupportedModelError",
        ["config.json", "MambaForCausalLM", "Qwen3ForCausalLM"],
    ),
    "an option that is not computed": (
        configured(rope_scaling={"rope_type": "yarn", "factor": 4.0}),
        "UnsupportedModelError",
        ["rope", "yarn"],
    ),
    "a truncated file": (truncated, "ModelLoadError", ["model.safetensors", "expected", "found"]),
    "a tensor of another shape": (with_header(reshaped), "ModelLoadError", [NORM, "[256]", "[128, 2]"]),
    "a missing tensor": (without_a_tensor, "ModelLoadError", [NORM]),
    "a tensor that the model doesn't have": (with_header(renamed), "ModelLoadError", ["somebody_elses", "none"]),
    "another size in config.json": (configured(intermediate_size=512), "ModelLoadError", ["512", "448"]),
    "no weights": (without_weights, "ModelLoadError", ["safetensors"]),
    "a config.json that is no JSON": (without_json, "ModelLoadError", ["config.json"]),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_worker_says_why_it_can_not_serve_its_model(case: str, tmp_path: Path) -> None:
    damage, error, says = CASES[case]
    model = Path(shutil.copytree(DEMO_MODEL, tmp_path / "model"))
    damage(model)
    message = await ended_with_2({"model.path": model})
    assert message.startswith(error + ": "), message
    assert all(part in message for part in says), message


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model.path": "/no/such/model"}, ["ModelLoadError", "/no/such/model"]),
        ({"engine.num_threads": 0}, ["ConfigError", "engine.num_threads", "0"]),
        ({"engine.no_such_setting": 1}, ["ConfigError", "engine.no_such_setting"]),
        ({"model.max_model_len": 1 << 20}, ["ConfigError", "model.max_model_len", str(1 << 20), "2048"]),
        ({"engine.isa": "avx9"}, ["avx9"]),
        ({"engine.kv_cache_bytes": 1}, ["ConfigError", "kv_pool_bytes 1"]),
        ({"transfer.host": "203.0.113.7"}, ["transfer.host 203.0.113.7", "transfer.trusted_network"]),
        ({"transfer.host": "203.0.113.7", "transfer.trusted_network": "true"}, ["203.0.113.7"]),
        ({"worker.host": "203.0.113.7"}, ["ConfigError", "worker.host", "203.0.113.7", "worker.token"]),
        ({"worker.host": "203.0.113.8", "worker.token": "x"}, ["UnavailableError", "worker.host", "203.0.113.8"]),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
async def test_a_worker_names_the_setting_that_is_wrong(settings: dict[str, Any], says: list[str]) -> None:
    message = await ended_with_2(settings)
    assert all(part in message for part in says), message


async def ended_with_2(settings: dict[str, Any]) -> str:
    """The last line that the worker wrote."""
    process = await spawn("prefill", "prefill-0", settings, asyncio.subprocess.PIPE)
    out, err = await asyncio.wait_for(process.communicate(), END_TIMEOUT_S)
    text = err.decode()
    assert (process.returncode, out) == (2, b""), text
    assert "Traceback" not in text
    return text.strip().splitlines()[-1]
