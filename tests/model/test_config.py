import json
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.errors import ModelLoadError, UnsupportedModelError
from rtp_llm.model.config import read_generation_defaults, read_model_config
from tests.model.files import write_config

LLAMA = ["LlamaForCausalLM"]
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def test_fields_are_read_as_written(tmp_path: Path) -> None:
    config = read_model_config(write_config(tmp_path, rms_norm_eps=1e-5, attention_bias=True, tie_word_embeddings=True))
    assert config.architecture == "Qwen3ForCausalLM"
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (11, 8, 12)
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (1, 2, 1)
    assert (config.head_dim, config.rms_norm_eps, config.max_position_embeddings) == (4, 1e-5, 64)
    assert config.qk_norm
    assert config.attention_bias
    assert config.attention_output_bias
    assert config.tie_word_embeddings
    assert config.dtype == "float32"


def test_what_is_silent_means_what_transformers_assumes(tmp_path: Path) -> None:
    silent = {"num_key_value_heads": None, "head_dim": None, "max_position_embeddings": None}
    llama = read_model_config(write_config(tmp_path, architectures=LLAMA, **silent))
    assert (llama.num_key_value_heads, llama.head_dim, llama.max_position_embeddings) == (2, 4, 2048)
    assert (llama.rms_norm_eps, llama.hidden_act, llama.rope.theta) == (1e-6, "silu", 10000.0)
    assert not llama.qk_norm
    assert not llama.tie_word_embeddings
    qwen = read_model_config(write_config(tmp_path, **silent))
    assert (qwen.head_dim, qwen.max_position_embeddings) == (128, 32768)


def test_only_llama_has_an_mlp_bias(tmp_path: Path) -> None:
    assert read_model_config(write_config(tmp_path, architectures=LLAMA, mlp_bias=True)).mlp_bias
    assert not read_model_config(write_config(tmp_path, mlp_bias=True)).mlp_bias


@pytest.mark.parametrize(
    "layout",
    [
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}},
        {"rope_theta": 1.0, "rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}},
    ],
)
def test_llama3_rope_of_transformers_4_and_5(tmp_path: Path, layout: dict[str, Any]) -> None:
    rope = read_model_config(write_config(tmp_path, layout)).rope
    assert (rope.scaling, rope.theta, rope.factor) == ("llama3", 5e5, 8.0)
    assert (rope.low_freq_factor, rope.high_freq_factor, rope.original_max_position_embeddings) == (1.0, 4.0, 32)


@pytest.mark.parametrize(
    "layout",
    [
        {"rope_theta": 1e6},
        {"rope_theta": 1e6, "rope_scaling": None},
        {"rope_theta": 1e6, "rope_scaling": {"rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
    ],
)
def test_default_rope_of_transformers_4_and_5(tmp_path: Path, layout: dict[str, Any]) -> None:
    rope = read_model_config(write_config(tmp_path, layout)).rope
    assert (rope.scaling, rope.theta) == ("default", 1e6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"architectures": ["MambaForCausalLM"]},
            "MambaForCausalLM is not supported, there are LlamaForCausalLM, Qwen3",
        ),
        ({"architectures": None}, "architecture none is not supported"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config .* quantized weights"),
        ({"use_sliding_window": True}, "use_sliding_window is True: sliding-window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types .* only full_attention"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu': there are silu"),
        ({"hidden_act": ["silu"]}, "hidden_act is .'silu'.: there are silu"),
        ({"dtype": ["float32"]}, "dtype .'float32'. is not supported"),
        ({"dtype": "float8"}, "dtype 'float8' is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling.rope_type 'yarn' is not supported"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "'linear' is not supported"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "rope_parameters differs by layer type"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
    ],
)
def test_what_would_change_results_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        read_model_config(write_config(tmp_path, **fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "8"}, "hidden_size must be a positive integer, found '8'"),
        ({"vocab_size": 0}, "vocab_size must be a positive integer, found 0"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps must be a positive number, found -1.0"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false, found 'yes'"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling.factor must be a positive number, found None"),
        ({"rope_theta": "x"}, r"json: rope_theta must be a positive number, found 'x'"),
        ({"rope_scaling": {"rope_theta": "x"}}, r"rope_scaling\.rope_theta must be a positive number, found 'x'"),
        ({"rope_theta": float("inf")}, "rope_theta must be a positive number, found inf"),
        ({"rope_theta": 10**400}, "rope_theta must be a positive number, found 1000"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps must be a positive number, found inf"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps must be a positive number, found 1000"),
        ({"num_hidden_layers": 2**31}, "num_hidden_layers must be a positive integer, found 2147483648"),
        ({"rope_scaling": "llama3"}, "rope_scaling must be an object"),
        ({"architectures": "LlamaForCausalLM"}, "architectures must be a list of texts, found 'Llama"),
        ({"architectures": [{}]}, "architectures must be a list of texts, found "),
        ({"layer_types": 5}, "layer_types must be a list of texts, found 5"),
    ],
)
def test_a_broken_field_is_named_with_file_and_value(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelLoadError, match=message) as caught:
        read_model_config(write_config(tmp_path, **fields))
    assert str(tmp_path / "config.json") in str(caught.value)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"config\.json: No such file"):
        read_model_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"config\.json: not JSON"):
        read_model_config(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelLoadError, match=r"config\.json: not JSON"):
        read_model_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelLoadError, match="expected a JSON object, found list"):
        read_model_config(tmp_path)


def test_dtype_auto_is_the_checkpoints(tmp_path: Path) -> None:
    config = read_model_config(write_config(tmp_path, dtype=None, torch_dtype="bfloat16"))
    assert config.resolve_dtype("auto") == "bfloat16"
    assert config.resolve_dtype("float32") == "float32"
    assert read_model_config(write_config(tmp_path, dtype="float16")).dtype == "float32"


def test_native_fields_carry_everything(tmp_path: Path) -> None:
    fields = read_model_config(write_config(tmp_path, rope_theta=2e4)).native_fields(
        "bfloat16", max_position_embeddings=32
    )
    assert fields["dtype"] == "bfloat16"
    assert fields["rope_theta"] == 2e4
    assert fields["rope_scaling"] == "default"
    assert fields["max_position_embeddings"] == 32
    assert "rope" not in fields


# --- generation_config.json


def test_end_of_sequence_ids_of_every_file_count(tmp_path: Path) -> None:
    write_config(tmp_path, eos_token_id=9)
    assert read_generation_defaults(tmp_path).eos_token_ids == (9,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 4, 3]}')
    assert read_generation_defaults(tmp_path).eos_token_ids == (3, 4, 9)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 9}')
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    (tmp_path / "added_tokens.json").write_text('{"<end>": 5}')
    assert read_generation_defaults(tmp_path).eos_token_ids == (9, 5)


@pytest.mark.parametrize("eos", ['"<end>"', '{"content": "<end>", "special": true}'])
@pytest.mark.parametrize(
    ("file", "tree"),
    [
        ("tokenizer_config.json", '{"eos_token": EOS, "added_tokens_decoder": {"7": {"content": "<end>"}}}'),
        ("added_tokens.json", '{"<end>": 7}'),
        ("tokenizer.json", '{"added_tokens": [{"id": 7, "content": "<end>"}]}'),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": 1, "<end>": 7}}}'),
        ("tokenizer.json", '{"model": {"type": "Unigram", "vocab": [["a", 0.0], ["<end>", -1.5]]}}'),
    ],
)
def test_the_tokenizers_end_of_sequence_token_counts_wherever_its_id_stands(
    tmp_path: Path, eos: str, file: str, tree: str
) -> None:
    write_config(tmp_path, eos_token_id=0)
    (tmp_path / "special_tokens_map.json").write_text(f'{{"eos_token": {eos}}}')
    (tmp_path / file).write_text(tree.replace("EOS", eos))
    assert read_generation_defaults(tmp_path).eos_token_ids == (0, 1 if "Unigram" in tree else 7)


@pytest.mark.parametrize(
    "tree", ["{}", '{"added_tokens": 5, "model": 5}', '{"added_tokens": [5, {"content": "<end>"}], "model": {}}']
)
def test_an_end_of_sequence_token_without_an_id_is_none(tmp_path: Path, tree: str) -> None:
    write_config(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<end>", "added_tokens_decoder": {"x": 1}}')
    (tmp_path / "tokenizer.json").write_text(tree)
    assert read_generation_defaults(tmp_path).eos_token_ids == ()


def test_no_end_of_sequence_id_is_none(tmp_path: Path) -> None:
    assert read_generation_defaults(write_config(tmp_path)).eos_token_ids == ()


def test_a_bad_end_of_sequence_id_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path, eos_token_id=["</s>"])
    with pytest.raises(ModelLoadError, match="eos_token_id must hold token ids, found '</s>'"):
        read_generation_defaults(tmp_path)
    write_config(tmp_path, eos_token_id=2**31)
    with pytest.raises(ModelLoadError, match="eos_token_id must hold token ids, found 2147483648"):
        read_generation_defaults(tmp_path)


def test_default_sampling_values(tmp_path: Path) -> None:
    write_config(tmp_path)
    text = '{"do_sample": true, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "max_length": 99}'
    (tmp_path / "generation_config.json").write_text(text)
    assert read_generation_defaults(tmp_path).sampling == {"temperature": 0.6, "top_p": 0.95, "top_k": 20}


@pytest.mark.parametrize("value", ['"temperature": -1', '"top_k": 1.5', '"top_p": 0', '"min_p": "x"'])
def test_a_default_that_nobody_could_ask_for_is_refused(tmp_path: Path, value: str) -> None:
    write_config(tmp_path)
    (tmp_path / "generation_config.json").write_text(f"{{{value}}}")
    name = value.split('"')[1]
    with pytest.raises(ModelLoadError, match=rf"generation_config\.json: {name} must be "):
        read_generation_defaults(tmp_path)


def test_no_sampling_is_greedy(tmp_path: Path) -> None:
    write_config(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.6}')
    assert read_generation_defaults(tmp_path).sampling == {"temperature": 0.0}


@pytest.mark.parametrize("greedy", [False, True])
def test_a_repetition_penalty_is_a_default_of_greedy_answers_too(tmp_path: Path, greedy: bool) -> None:
    write_config(tmp_path)
    generation = {"do_sample": not greedy, "repetition_penalty": 1.05, "top_k": 20}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    others = {"temperature": 0.0} if greedy else {"top_k": 20}
    assert read_generation_defaults(tmp_path).sampling == {**others, "repetition_penalty": 1.05}


@pytest.mark.parametrize("more", ["", ', "do_sample": false'])
def test_what_is_not_applied_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, more: str) -> None:
    write_config(tmp_path)
    neutral = '"num_beams": 1, "bad_words_ids": null, "min_length": 0, "max_length": 20'
    text = f'{{"encoder_repetition_penalty": 1.1, "suppress_tokens": [7], {neutral}{more}}}'
    (tmp_path / "generation_config.json").write_text(text)
    assert read_generation_defaults(tmp_path).sampling == ({"temperature": 0.0} if more else {})
    assert [record.getMessage().removeprefix("generation_config.json: ") for record in caplog.records] == [
        "encoder_repetition_penalty 1.1 is not applied",
        "suppress_tokens [7] is not applied",
    ]
