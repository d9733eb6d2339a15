"""Checkpoints in torch's own format load into the same model as safetensors do."""

import json
from pathlib import Path

import pytest
import torch

from rtp_llm.errors import ModelLoadError
from tests.model.scoring import Scored
from tests.parity.checkpoints import fresh

BIN = "pytorch_model.bin"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_bin_file_is_the_same_model(dtype: torch.dtype, tmp_path: Path) -> None:
    model = fresh("llama_untied", tmp_path).to(dtype)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path)
    safetensors = Scored(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / BIN)
    assert Scored(tmp_path).digest == safetensors.digest


def test_shards_are_found_by_their_index(tmp_path: Path) -> None:
    state = fresh("qwen3_tied", tmp_path).state_dict()
    safetensors = Scored(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    names = sorted(state)
    shards = {"a.bin": names[::2], "b.bin": names[1::2]}
    for file, own in shards.items():
        torch.save({name: state[name] for name in own}, tmp_path / file)
    weight_map = {name: file for file, own in shards.items() for name in own}
    (tmp_path / f"{BIN}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert Scored(tmp_path).digest == safetensors.digest


def test_a_broken_bin_file_is_named(tmp_path: Path) -> None:
    state = fresh("llama_tied", tmp_path).state_dict()
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / BIN).write_bytes(b"no archive")
    with pytest.raises(ModelLoadError, match=BIN):
        Scored(tmp_path)
    torch.save({"model.norm.weight": state["model.norm.weight"][:3]}, tmp_path / BIN)
    with pytest.raises(ModelLoadError, match=r"tensor model\.norm\.weight: expected shape \[32\], found \[3\]"):
        Scored(tmp_path)
    torch.save({"model.norm.weight": state["model.norm.weight"]}, tmp_path / BIN)
    with pytest.raises(ModelLoadError, match=r"tensors are missing: model\.embed_tokens\.weight"):
        Scored(tmp_path)
    torch.save([state], tmp_path / BIN)
    with pytest.raises(ModelLoadError, match=rf"{BIN}: expected tensors by name, found a list"):
        Scored(tmp_path)
    torch.save({"model": state}, tmp_path / BIN)
    with pytest.raises(ModelLoadError, match=rf"{BIN}: expected tensors by name, found model: "):
        Scored(tmp_path)
    (tmp_path / f"{BIN}.index.json").write_text('{"weight_map": ["a.bin"]}')
    with pytest.raises(ModelLoadError, match=r"weight_map must map tensors to files, found \['a\.bin'\]"):
        Scored(tmp_path)
