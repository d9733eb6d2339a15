"""The shipped files are whole, small and of one mind."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def tensor_table(path: Path) -> dict[str, dict[str, Any]]:
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        table = json.loads(file.read(size))
    table.pop("__metadata__", None)
    return table


def test_all_files_are_there_and_small(demo: Path):
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (demo / name).stat().st_size < 256 * 1024, name
    for name in ("README.md", "LICENSE"):
        assert (demo / name).stat().st_size > 100, name
    assert 1_000_000 < (demo / "model.safetensors").stat().st_size <= 8_000_000


def test_all_models_together_stay_within_16_mb(demo: Path):
    assert sum(path.stat().st_size for path in demo.rglob("*") if path.is_file()) <= 16_000_000


def test_config_names_a_tied_qwen3_with_2048_tokens_of_context(demo: Path):
    config = read_json(demo / "config.json")
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["model_type"] == "qwen3"
    assert config["torch_dtype"] == "bfloat16"
    assert config["tie_word_embeddings"] is True
    assert config["head_dim"] == 64
    assert config["max_position_embeddings"] >= 2048


def test_every_tensor_is_bf16_and_has_the_shape_the_config_implies(demo: Path):
    c, tensors = read_json(demo / "config.json"), tensor_table(demo / "model.safetensors")
    hidden, inner, head = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * head, c["num_key_value_heads"] * head
    expected = {"model.embed_tokens.weight": [c["vocab_size"], hidden], "model.norm.weight": [hidden]}
    for i in range(c["num_hidden_layers"]):
        layer = {
            "input_layernorm": [hidden], "post_attention_layernorm": [hidden],
            "self_attn.q_proj": [q, hidden], "self_attn.k_proj": [kv, hidden], "self_attn.v_proj": [kv, hidden],
            "self_attn.o_proj": [hidden, q], "self_attn.q_norm": [head], "self_attn.k_norm": [head],
            "mlp.gate_proj": [inner, hidden], "mlp.up_proj": [inner, hidden], "mlp.down_proj": [hidden, inner],
        }  # fmt: skip
        expected |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    assert {name: entry["shape"] for name, entry in tensors.items()} == expected
    assert {entry["dtype"] for entry in tensors.values()} == {"BF16"}


def test_end_of_turn_is_the_eos_token_everywhere(demo: Path, tokenizer: Tokenizer):
    end = tokenizer.token_to_id("<|im_end|>")
    assert read_json(demo / "tokenizer_config.json")["eos_token"] == "<|im_end|>"
    assert read_json(demo / "config.json")["eos_token_id"] == end
    assert read_json(demo / "generation_config.json")["eos_token_id"] == [end, tokenizer.token_to_id("<|endoftext|>")]


def test_vocabulary_fits_the_embedding(demo: Path, tokenizer: Tokenizer):
    assert tokenizer.get_vocab_size(with_added_tokens=True) == read_json(demo / "config.json")["vocab_size"]
    assert 2048 <= tokenizer.get_vocab_size() <= 4096


@pytest.mark.parametrize(
    "text",
    [
        "What is 23 + 58?",
        "I'm Zoë; 李雷 says “hi” 🙂🧑‍🚀",
        "  two  spaces\n\n\ttab \r\n",
        "\x00\x7f naïve ﬁ",
        "مرحبا नमस्ते",
    ],
)
def test_any_text_survives_encoding(tokenizer: Tokenizer, text: str):
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_each_digit_is_a_token(tokenizer: Tokenizer):
    assert [token for token in tokenizer.encode("1234+5").tokens if token.isdigit()] == ["1", "2", "3", "4", "5"]
    assert not [token for token in tokenizer.get_vocab() if sum(map(str.isdigit, token)) > 1]


def test_markup_tokens_stay_in_decoded_text_and_control_tokens_do_not(tokenizer: Tokenizer):
    markup = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
    text = "".join(markup)
    ids = tokenizer.encode(f"{text}<|im_end|><|im_start|><|endoftext|>").ids
    assert len(ids) == len(markup) + 3
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
