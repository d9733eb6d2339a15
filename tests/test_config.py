"""The config tree: where a setting may come from, and what is said of a wrong one."""

import re
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.config import LIVE_ROUTER_SETTINGS, Config, Pool, RouterSettings, load_config, settings
from rtp_llm.errors import ConfigError


def test_later_beats_earlier(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("engine: {max_num_seqs: 3, num_threads: 2, block_tokens: 32}")
    environ = {"RTP_LLM_ENGINE__MAX_NUM_SEQS": "4", "RTP_LLM_ENGINE__NUM_THREADS": "5"}
    engine = load_config(file, {"engine.max_num_seqs": 6}, environ).engine
    assert (engine.max_num_seqs, engine.num_threads, engine.block_tokens) == (6, 5, 32)


def test_a_pools_own_engine_settings_override_the_common_ones() -> None:
    config = load_config(
        overrides={"engine.num_threads": 2, "decode.engine": {"num_threads": 3}, "engine.max_num_seqs": 9}, environ={}
    )
    assert config.engine_of("prefill").num_threads == 2
    assert (config.engine_of("decode").num_threads, config.engine_of("decode").max_num_seqs) == (3, 9)


def test_a_pools_engine_setting_is_a_setting_as_others_are() -> None:
    environ = {"RTP_LLM_DECODE__ENGINE__NUM_THREADS": "2", "RTP_LLM_DECODE__ENGINE__MAX_NUM_SEQS": "5"}
    engine = load_config(overrides={"decode.engine.num_threads": "3"}, environ=environ).engine_of(Pool.DECODE)
    assert (engine.num_threads, engine.max_num_seqs) == (3, 5)
    found = settings()
    common = {path for path in found if path.startswith("engine.")}
    for pool in Pool:
        assert {path for path in found if path.startswith(f"{pool}.engine.")} == {f"{pool}.{path}" for path in common}
    assert all(found[f"decode.{path}"].annotation == found[path].annotation for path in common)


def test_a_pool_may_take_back_what_is_set_for_all() -> None:
    tree = {"engine": {"kv_cache_bytes": 5}, "decode": {"engine": {"kv_cache_bytes": None}}}
    config = Config.model_validate(tree)
    for each in (config, Config.model_validate(config.model_dump())):  # as it travels to a replica
        assert [each.engine_of(pool).kv_cache_bytes for pool in Pool] == [5, None]
        assert (each.model_dump()["prefill"]["engine"], each.model_dump()["decode"]["engine"]) == (
            {},
            {"kv_cache_bytes": None},
        )


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({"replicas": 2}, (2, 2, 2)),
        ({"autoscaling": {"max": 3}}, (1, 1, 3)),
        ({"autoscaling": {"min": 0, "max": 3}}, (0, 1, 3)),
        ({"replicas": 9, "autoscaling": {"min": 2, "max": 3}}, (2, 3, 3)),
        ({"replicas": 0, "autoscaling": {"min": 0, "max": 3}}, (0, 0, 3)),
        ({"replicas": 3, "autoscaling": {"min": 0, "max": 3, "initial": 0}}, (0, 0, 3)),
    ],
)
def test_a_pool_has_a_size_of_its_own_or_limits(settings: dict[str, object], sizes: tuple[int, int, int]) -> None:
    config = Config.model_validate({"prefill": settings})
    for each in (config, Config.model_validate(config.model_dump())):  # as it travels to a replica
        assert each.sizes_of(Pool.PREFILL) == sizes
        assert (each.max_workers, each.initial_workers) == (sizes[2] + 1, sizes[1] + 1)
        assert each.is_autoscaled == ("autoscaling" in settings)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    for content in (b"\xff\xfe", b"\0", b"{"):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=f"config file {file}: "):
            load_config(file, environ={})


def test_an_absolute_path_keeps_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path / "model")
    config = load_config(overrides={"model.path": "."}, environ={})
    assert config.with_absolute_path().model.path == str(tmp_path / "model")
    assert config.with_absolute_path().served_name == config.served_name == "model"


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("engine.max_num_seqs", 0, "engine.max_num_seqs: Input should be greater than or equal to 1, got 0"),
        ("engine.speed", 1, "engine.speed: Extra inputs are not permitted, got 1"),
        ("motor.speed", 1, "motor: Extra inputs are not permitted"),
        ("prefill.engine", {"speed": 1}, "prefill.engine.speed: Extra inputs are not permitted, got 1"),
        (
            "decode.engine.num_threads",
            "0",
            "decode.engine.num_threads: Input should be greater than or equal to 1, got '0'",
        ),
        ("decode.engine.num_threads", None, "decode.engine.num_threads: Input should be a valid integer, got None"),
        ("decode.engine.block_tokens", 513, "decode.engine.block_tokens: Input should be less than or equal to 512"),
        ("prefill.engine", 5, "prefill.engine: Input should be a valid dictionary"),
        ("decode.resources", {"a": "b"}, "decode.resources.a: Input should be a valid number"),
        ("prefill.autoscaling", {"min": 3, "max": 2}, "prefill.autoscaling.max: must be at least min 3, got 2"),
        (
            "decode.autoscaling",
            {"max": 2, "initial": 3},
            "decode.autoscaling.initial: must be from min 1 to max 2, got 3",
        ),
        ("prefill.autoscaling.queue_share", 0.1, "prefill.autoscaling: queue_share is set, so max must be"),
        (
            "autoscaling.decode_per_prefill",
            2,
            "autoscaling: decode_per_prefill needs prefill.autoscaling.max and decode.autoscaling.max",
        ),
        ("autoscaling.interval_s", 15, "autoscaling.interval_s: must be less than autoscaling.window_s 15.0, got 15"),
    ],
)
def test_a_wrong_setting_is_refused_by_path_and_value(path: str, value: object, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        load_config(overrides={path: value}, environ={})


@pytest.mark.parametrize(
    ("times", "says"),
    [
        ({"lost_after_s": 0.5}, "handover.lost_after_s: must be more than handover.heartbeat_s 0.5, got 0.5"),
        ({"heartbeat_s": 3}, "handover.lost_after_s: must be more than handover.heartbeat_s 3.0, got 2.5"),
        (
            {"lease_s": 1},
            "handover.lease_margin_s: with handover.heartbeat_s 0.5 must be less than handover.lease_s 1.0, got 0.5",
        ),
        (
            {"lease_margin_s": "4.5"},
            "handover.lease_margin_s: with handover.heartbeat_s 0.5 must be less than handover.lease_s 5.0, got '4.5'",
        ),
        ({"heartbeat_s": 0}, "handover.heartbeat_s: Input should be greater than 0, got 0"),
        ({"lease_s": "long"}, "handover.lease_s: Input should be a valid number"),
    ],
)
def test_times_that_do_not_go_together_are_refused_by_both_names_and_values(
    times: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        load_config(overrides={f"handover.{name}": value for name, value in times.items()}, environ={})


def test_times_just_within_their_limits_are_taken() -> None:
    just = {"handover.lost_after_s": 0.51, "handover.lease_s": 1.01}
    assert load_config(overrides=just, environ={}).handover.lease_s == 1.01


def test_a_variable_of_no_setting_is_refused_by_name_and_its_value_is_not_shown() -> None:
    for name in ("RTP_LLM_ENGINE__MAX_NUM_SEQ", "RTP_LLM_WORKER__TOKENS"):
        with pytest.raises(ConfigError, match=f"{name}: there is no such setting") as refused:
            load_config(environ={name: "s3cret"})
        assert "s3cret" not in str(refused.value)
    load_config(environ={"RTP_LLM_ISA": "generic", "RTP_LLM_NATIVE_DIR": "/tmp", "RTP_LLM_HAPROXY": "/haproxy"})


@pytest.mark.parametrize("text", ["[1]", "engine: 5", "{", "\x00"])
def test_a_file_that_is_no_tree_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError):
        load_config(file, environ={})


def test_a_gpu_has_defaults_of_its_own_and_keeps_what_is_given() -> None:
    engine = load_config(overrides={"engine.device": "cuda", "engine.max_num_seqs": 7}).engine
    assert (engine.block_tokens, engine.max_num_batched_tokens, engine.max_num_seqs) == (64, 8192, 7)
    assert load_config(overrides={}).engine.block_tokens == 16


@pytest.mark.parametrize(
    ("name", "value", "said"), [("block_tokens", 24, "multiple of 16"), ("kv_dtype", "float32", "auto or bfloat16")]
)
def test_what_a_gpu_cannot_do_is_refused_by_name(name: str, value: object, said: str) -> None:
    with pytest.raises(ConfigError, match=f"engine.{name}.*{said}"):
        load_config(overrides={"engine.device": "cuda", f"engine.{name}": value})


def test_a_worker_on_a_gpu_reserves_one() -> None:
    config = load_config(overrides={"decode.engine": {"device": "cuda"}, "prefill.num_gpus": 0.5})
    assert (config.num_gpus_of(Pool.DECODE), config.num_gpus_of(Pool.PREFILL)) == (1.0, 0.5)
    assert load_config(overrides={}).num_gpus_of(Pool.PREFILL) == 0.0


def token_of(config: Config) -> str:
    return config.worker.token.get_secret_value()


def test_a_token_out_of_a_file_is_read_where_it_is_needed(tmp_path: Path) -> None:
    file = tmp_path / "token"
    config = load_config(overrides={"worker.token_file": str(file)}, environ={})
    file.write_text(" s3cret\n")
    assert token_of(config) == "" and token_of(config.with_token_read()) == "s3cret"
    assert config.with_token() is config  # none is drawn beside it
    assert load_config(environ={}).with_token_read() == load_config(environ={})


def test_a_token_file_that_is_none_is_named_and_its_text_is_not(tmp_path: Path) -> None:
    def read(path: Path, **also: str) -> str:
        config = load_config(overrides={"worker.token_file": str(path), **also}, environ={})
        with pytest.raises(ConfigError, match=r"worker\.token_file") as wrong:
            config.with_token_read()
        assert str(path) in str(wrong.value)
        return str(wrong.value)

    assert "No such file" in read(tmp_path / "none")
    (tmp_path / "empty").write_text(" \n")
    assert "nothing in it" in read(tmp_path / "empty")
    (tmp_path / "binary").write_bytes(b"s3cret\xff")
    assert "s3cret" not in read(tmp_path / "binary")
    (tmp_path / "good").write_text("s3cret")
    assert "s3cret" not in read(tmp_path / "good", **{"worker.token": "another"})


def test_a_derived_token_is_one_fleets_and_tells_nothing_of_its_key() -> None:
    def derived(key: str, directory: str = "a", **also: str) -> str:
        config = load_config(overrides={"worker.directory": directory, **also}, environ={})
        return token_of(config.with_token_derived(key))

    assert derived("key") == derived("key") and len(derived("key")) == 64
    assert len({derived("key"), derived("yek"), derived("key", "b"), "key"}) == 4
    assert derived("") == ""
    assert derived("key", **{"worker.token": "own"}) == "own"


@pytest.mark.parametrize("weight", [0, -1, ".inf", "much"])
def test_a_tenants_weight_is_a_number_above_0(weight: object) -> None:
    assert load_config(overrides={"router.tenant_weights": '{"a": 2}'}, environ={}).router.tenant_weights == {"a": 2}
    with pytest.raises(ConfigError, match=r"router.tenant_weights.a: "):
        load_config(overrides={"router.tenant_weights": {"a": weight}}, environ={})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"policy": "cost"}, "router.policy can't be changed while it runs, only client_buffer_tokens, max_losses"),
        ({"ping": 1}, "router.ping can't be changed while it runs"),
        ({"ping_s": -1}, "router.ping_s: "),
        (
            {"max_losses": 2, "request_timeout_s": 601},
            "router.request_timeout_s 601 exceeds that of the deployment, 600",
        ),
    ],
)
def test_a_running_router_takes_no_setting_that_is_wrong_or_not_for_it(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        load_config(environ={}).reconfigured(changes)


def test_a_running_router_takes_settings_over_and_those_of_the_deployment_are_the_others() -> None:
    deployed = load_config(overrides={"router.max_losses": 5, "router.ping_s": 3.0}, environ={})
    changed = deployed.reconfigured({"ping_s": 7, "tenant_weights": {"a": 2}})
    assert (changed.router.max_losses, changed.router.ping_s, changed.router.tenant_weights) == (5, 7.0, {"a": 2.0})
    assert deployed.reconfigured({}) == deployed
    assert set(LIVE_ROUTER_SETTINGS) < set(RouterSettings.model_fields)
