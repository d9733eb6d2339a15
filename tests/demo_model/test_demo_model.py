"""The shipped files are whole, and the held-out prompts are out of the training generator's reach."""

from __future__ import annotations

import json
import re
import struct
import sys
from pathlib import Path
from random import Random

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "rtp_llm" / "demo"
TOOL = ROOT / "tools" / "demo_model"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO / "tokenizer.json"))


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch):
    """The modules `data`, `add`, `evaluate` of the tool; its folder is no package."""
    names = {path.stem for path in TOOL.glob("*.py")}
    before = {name: sys.modules.pop(name) for name in names & sys.modules.keys()}
    monkeypatch.syspath_prepend(str(TOOL))
    import add
    import data
    import evaluate

    yield add, data, evaluate
    for name in names & sys.modules.keys():
        del sys.modules[name]
    sys.modules.update(before)


def read_json(name: str) -> dict:
    return json.loads((DEMO / name).read_text())


def tensor_table() -> dict[str, dict]:
    with (DEMO / "model.safetensors").open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        table = json.loads(file.read(size))
    table.pop("__metadata__")
    return table


def test_all_files_are_there_and_small():
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (DEMO / name).stat().st_size < 256 * 1024, name
    for name in ("README.md", "LICENSE"):
        assert (DEMO / name).stat().st_size > 100, name
    assert 1_000_000 < (DEMO / "model.safetensors").stat().st_size <= 8_000_000


def test_config_names_a_tied_qwen3_with_2048_tokens_of_context():
    config = read_json("config.json")
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["model_type"] == "qwen3"
    assert config["torch_dtype"] == "bfloat16"
    assert config["tie_word_embeddings"] is True
    assert config["rope_theta"] == 10000.0
    assert config["head_dim"] == 64
    assert config["max_position_embeddings"] >= 2048


def test_every_tensor_is_bf16_and_has_the_shape_the_config_implies():
    c, tensors = read_json("config.json"), tensor_table()
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


def test_end_of_turn_is_the_eos_token_everywhere(tokenizer: Tokenizer):
    end = tokenizer.token_to_id("<|im_end|>")
    assert read_json("tokenizer_config.json")["eos_token"] == "<|im_end|>"
    assert read_json("config.json")["eos_token_id"] == end
    assert read_json("generation_config.json")["eos_token_id"] == [end, tokenizer.token_to_id("<|endoftext|>")]


def test_vocabulary_fits_the_embedding(tokenizer: Tokenizer):
    assert tokenizer.get_vocab_size(with_added_tokens=True) == read_json("config.json")["vocab_size"]
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


def test_template_renders_what_the_model_was_trained_on(tokenizer: Tokenizer, generator):
    _, data, _ = generator
    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(
        read_json("tokenizer_config.json")["chat_template"]
    )
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": "Nice to meet you, Ada!"},
        {"role": "user", "content": "What is my name?"},
        {"role": "assistant", "content": "Your name is Ada."},
    ]
    prompt = template.render(messages=messages[:4], add_generation_prompt=True)
    assert prompt == "".join(segment.text for segment in data.render(messages)[:-1])
    assert prompt.endswith("<|im_start|>assistant\n")
    ids = tokenizer.encode(prompt).ids
    assert ids.count(tokenizer.token_to_id("<|im_start|>")) == 5
    assert ids.count(tokenizer.token_to_id("<|im_end|>")) == 4


@pytest.mark.parametrize("skill", ["greet", "add", "recall", "recall_long"])
def test_held_out_prompts_are_many_distinct_and_repeatable(generator, skill: str):
    _, data, _ = generator
    prompts = data.held_out(skill, 200)
    assert len({str(prompt.messages) for prompt in prompts}) == 200
    assert prompts == data.held_out(skill, 200)
    assert all(prompt.messages[-1]["role"] == "user" and prompt.answer for prompt in prompts)


def test_training_never_shows_a_held_out_sum(generator):
    add, data, _ = generator
    sums = {tuple(sorted(map(int, re.findall(r"\d+", p.answer)[:2]))) for p in data.held_out("add", 200)}
    rng = Random(7)
    seen = set()
    for _ in range(4000):
        text = "".join(segment.text for segment in data.training_document(rng, 400))
        seen |= {tuple(sorted((int(a), int(b)))) for a, b in re.findall(r"(\d+) ?\+ ?(\d+)", text)}
    assert len(seen) > 2000
    assert not seen & sums
    assert all(add.is_held_out("add", *pair) for pair in sums)


def test_training_never_shows_a_held_out_prompt_or_tells_a_held_out_fact(generator, monkeypatch):
    _, data, _ = generator
    import dialogue

    told = []
    learn = dialogue.Dialogue._learn
    monkeypatch.setattr(dialogue.Dialogue, "_learn", lambda self, fact: (told.append(fact), learn(self, fact))[1])
    greetings = {p.messages[-1]["content"] for p in data.held_out("greet", 200)}
    rng = Random(8)
    for _ in range(2000):
        text = "".join(segment.text for segment in data.training_document(rng, rng.choice((400, 2000))))
        assert not greetings & set(re.findall(r"<\|im_start\|>user\n(.*)<\|im_end\|>", text))
    assert len(told) > 2000
    assert not [fact for fact in told if fact.held_out]


def test_score_takes_any_generator_of_replies(generator):
    _, data, evaluate = generator
    answers = {str(p.messages): p.answer for p in data.held_out("add", 20)}
    perfect = evaluate.score(lambda conversations: [answers[str(c)] for c in conversations], "add", 20)
    mute = evaluate.score(lambda conversations: [""] * len(conversations), "add", 20)
    assert (perfect.num_right, mute.num_right) == (20, 0)
    assert "| add | 20 | 20 | 100.0% |" in evaluate.table([perfect])
