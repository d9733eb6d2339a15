"""RTP-LLM's variables and arguments in the config tree, and the page that says so."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from rtp_llm import cli, start_server
from rtp_llm.config import DEMO_MODEL, load_config, settings
from rtp_llm.errors import ConfigError, ModelLoadError
from rtp_llm.model_factory import ModelConfig
from rtp_llm.pipeline import QUIET
from rtp_llm.rtp_variables import MODEL_CONFIG, VARIABLES, Quiet, Refused, Setting, Switch, settings_of

PAGE = (Path(__file__).parents[1] / "docs/rtp-llm.md").read_text()
VALUES = {
    "CHECKPOINT_PATH": ("rtp_llm/demo", "model.path", "rtp_llm/demo"),
    "MAX_SEQ_LEN": ("2000", "model.max_model_len", 2000),
    "CONCURRENCY_LIMIT": ("7", "engine.max_num_seqs", 7),
    "KV_CACHE_MEM_MB": ("64", "engine.kv_cache_bytes", 64 << 20),
    "TEST_BLOCK_NUM": ("100", "engine.num_kv_blocks", 100),
    "SEQ_SIZE_PER_BLOCK": ("8", "engine.block_tokens", 8),
    "MAX_BATCH_TOKENS_SIZE": ("99", "engine.max_num_batched_tokens", 99),
    "REUSE_CACHE": ("0", "engine.enable_prefix_caching", False),
    "USE_BLOCK_CACHE": ("True", "engine.enable_prefix_caching", True),
    "START_PORT": ("8088", "http.port", 8088),
    "FRONTEND_SERVER_COUNT": ("2", "router.replicas", 2),
    "WEIGHT_TYPE": ("bf16", "model.dtype", "bfloat16"),
    "ACT_TYPE": ("FP32", "model.dtype", "float32"),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_variable_is_a_setting(name: str) -> None:
    text, path, value = VALUES[name]
    found = load_config(overrides=settings_of({name: text}), environ={})
    section, setting = path.split(".")
    assert getattr(getattr(found, section), setting) == value


@pytest.mark.parametrize(
    "name", [name for name, meaning in VARIABLES.items() if not isinstance(meaning, Refused | Quiet)]
)
def test_each_variable_that_is_a_setting_is_tried(name: str) -> None:
    assert name in VALUES or name in ("TOKENIZER_PATH", "MODEL_TYPE")
    meaning = VARIABLES[name]
    if isinstance(meaning, Setting | Switch):
        assert meaning.path in settings()


@pytest.mark.parametrize("name", [name for name, meaning in VARIABLES.items() if isinstance(meaning, Refused)])
def test_what_is_not_computed_is_refused_by_variable_and_value(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} is not supported \(.+\), got 'something'$"):
        settings_of({name: "something"})
    meaning = VARIABLES[name]
    assert isinstance(meaning, Refused)
    for neutral in ("", *meaning.neutral, *(each.upper() for each in meaning.neutral)):
        assert settings_of({name: neutral}) == {}


def test_what_changes_no_answer_and_what_is_empty_says_nothing() -> None:
    quiet = {name: "1" for name, meaning in VARIABLES.items() if isinstance(meaning, Quiet)}
    assert settings_of(quiet) == {}
    assert settings_of(dict.fromkeys(VARIABLES, " ")) == {}
    assert settings_of({"MAX_SEQ_LEN": "0", "KV_CACHE_MEM_MB": "-1", "WEIGHT_TYPE": "auto"}) == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"START_PORT": "70000"}, "START_PORT: http.port: Input should be less than or equal to 65535, got '70000'"),
        ({"MAX_SEQ_LEN": "long"}, "MAX_SEQ_LEN: model.max_model_len: Input should be a valid integer.*got 'long'"),
        ({"CONCURRENCY_LIMIT": "0"}, "CONCURRENCY_LIMIT: engine.max_num_seqs: .*got '0'"),
        ({"SEQ_SIZE_PER_BLOCK": "1e3"}, "SEQ_SIZE_PER_BLOCK: engine.block_tokens: .*got '1e3'"),
        ({"KV_CACHE_MEM_MB": "2G"}, "KV_CACHE_MEM_MB must be a number of MiB, got '2G'"),
        ({"KV_CACHE_MEM_MB": "²"}, "KV_CACHE_MEM_MB must be a number of MiB, got '²'"),
        ({"REUSE_CACHE": "2"}, "REUSE_CACHE must be 1 or 0, got '2'"),
        ({"WEIGHT_TYPE": "INT8"}, "WEIGHT_TYPE must be BF16, FP32 or AUTO.*, got 'INT8'"),
        ({"WEIGHT_TYPE": "FP16"}, "WEIGHT_TYPE must be BF16, FP32 or AUTO.*, got 'FP16'"),
        ({"REUSE_CACHE": "1", "USE_BLOCK_CACHE": "0"}, "USE_BLOCK_CACHE is '0', but REUSE_CACHE is '1': both are engine"),
        ({"WEIGHT_TYPE": "BF16", "ACT_TYPE": "fp32"}, "ACT_TYPE is 'fp32', but WEIGHT_TYPE is 'BF16': both are model.dtype"),
        ({"MODEL_TYPE": "qwen_7b"}, "MODEL_TYPE: there are llama, qwen_3, got 'qwen_7b'"),
        ({"MODEL_TYPE": "llama"}, "MODEL_TYPE llama is LlamaForCausalLM, but .*config.json says Qwen3ForCausalLM"),
        ({"TOKENIZER_PATH": "/t"}, "TOKENIZER_PATH is not supported, got '/t': the tokenizer of the model .*/demo is used"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_said_by_variable_and_value(given: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        settings_of(given)


def test_tokenizer_and_kind_of_model_are_taken_where_they_are_the_models_own() -> None:
    given = {"CHECKPOINT_PATH": DEMO_MODEL, "TOKENIZER_PATH": f"{DEMO_MODEL}/", "MODEL_TYPE": "qwen_3"}
    assert settings_of(given) == {"model.path": DEMO_MODEL}
    with pytest.raises(ModelLoadError, match=r"/nowhere/config\.json"):
        settings_of({"CHECKPOINT_PATH": "/nowhere", "MODEL_TYPE": "qwen_3"})


def test_the_server_is_started_by_variables_then_flags_then_those_of_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(cli, "main", lambda arguments: called.append(list(arguments)) or 0)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("START_PORT", "1000")
    monkeypatch.setenv("CHECKPOINT_PATH", DEMO_MODEL)
    assert start_server.main(["--start_port", "2000", "--kv_cache_mem_mb", "-1", "--port", "3000", "--prefill=2"]) == 0
    expected = ["serve", f"--model.path={DEMO_MODEL}", "--http.port=2000", "--port", "3000", "--prefill=2"]
    assert [sorted(arguments) for arguments in called] == [sorted(expected)]
    assert called[0][-3:] == ["--port", "3000", "--prefill=2"]
    monkeypatch.undo()
    config = cli._config(cli._parser().parse_args(called[0]))
    assert (config.http.port, config.prefill.replicas, config.model.path) == (3000, 2, DEMO_MODEL)


def test_the_server_says_a_wrong_variable_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INT8_KV_CACHE", "1")
    assert start_server.main([]) == 1
    assert capsys.readouterr() == ("", "rtp-llm: INT8_KV_CACHE is not supported (a quantized KV cache), got '1'\n")


def test_the_page_has_each_variable_and_argument_as_the_code_has_it() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, re.M)
    told = dict(rows)
    assert {name: told.get(name) for name in VARIABLES} == {name: each.words for name, each in VARIABLES.items()}
    assert {name: told.get(name) for name in MODEL_CONFIG} == {n: f"as `{each}`" for n, each in MODEL_CONFIG.items()}
    assert MODEL_CONFIG.keys() == {each.name for each in fields(ModelConfig)}
    upper = {name for name, _ in rows if name.isupper()}
    assert upper == VARIABLES.keys()
    [quiet] = re.findall(r"Taken without effect: (.*?)\. A name", PAGE, re.S)
    assert set(re.findall(r"`(\w+)`", quiet)) == QUIET


def test_the_pages_python_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(code, {})
    assert capsys.readouterr().out.startswith("['")
