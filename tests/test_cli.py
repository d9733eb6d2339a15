"""The commands, as far as they need no deployment."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rtp_llm import cli
from rtp_llm.config import load_config, settings
from rtp_llm.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit status, stdout, stderr)"""
    try:
        status = cli.main(arguments)
    except SystemExit as end:
        status = int(end.code or 0)
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["serve", "--port", "many"], 1, "http.port: Input should be a valid integer"),
        (["serve", "--port", "70000"], 1, "http.port: Input should be less than or equal to 65535, got '70000'"),
        (["serve", "--engine.max-num-seqs", "0"], 1, "engine.max_num_seqs: Input should be greater than or equal to 1"),
        (["serve", "--decode.resources", "{"], 1, "decode.resources: Value error"),
        (["serve", "--decode.engine.num-threads", "0"], 1, "decode.engine.num_threads: Input should be greater than"),
        (["serve", "--decode.engine.speed", "1"], 2, "unrecognized arguments: --decode.engine.speed"),
        (
            ["serve", "--router.policy", "luck"],
            1,
            "router.policy: 'luck' is unknown, there are affinity, cost, least_loaded, prefix_",
        ),
        (["serve", "--pot"], 2, "unrecognized arguments: --pot; see rtp-llm --help"),
        (["serve", "--config", "/nowhere.yaml"], 1, "config file /nowhere.yaml: [Errno 2] No such file"),
        (["serve", "/nowhere"], 1, "/nowhere/config.json: No such file or directory"),
        (["serve", "--prefill", "0", "--decode", "0"], 1, "prefill.replicas and decode.replicas are both 0"),
        (["generate", "Hello", "--max-tokens", "x"], 2, "argument --max-tokens: invalid int value: 'x'"),
        (
            ["generate", "Hello", "--temperature", "-1"],
            1,
            "temperature must be a number from 0 to 3.40282e+38, got -1.0",
        ),
        (["generate", "Hello", "--model", "/nowhere"], 1, "/nowhere/config.json: No such file or directory"),
        (["bench", "engine", "--decode", "1,0"], 2, "argument --decode: invalid list of positive numbers value: '1,0'"),
        (["bench", "engine", "/nowhere"], 1, "/nowhere/config.json: No such file or directory"),
        (["bench"], 2, "the following arguments are required: WHAT"),
        ([], 2, "the following arguments are required: COMMAND"),
    ],
)
def test_a_wrong_value_is_one_clear_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, said: str
) -> None:
    found, out, error = run(capsys, *arguments)
    assert (found, out, error.count("\n")) == (status, "", 1)
    assert said in error


def test_a_taken_port_is_said_before_ray_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, out, error = run(capsys, "serve", "--port", str(port))
    assert (status, out, error) == (1, "", f"rtp-llm: http.port {port} on 127.0.0.1: Address already in use\n")


def test_help_names_every_command_and_serves_help_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "--help")
    assert status == 0
    assert all(re.search(rf"^\s+{name}\s", out, re.M) for name in ("serve", "generate", "chat", "bench", "env"))
    status, out, _ = run(capsys, "serve", "--help")
    assert status == 0
    assert out.startswith("usage: rtp-llm serve [MODEL] [options]\n")
    assert [path for path in settings() if f"--{path.replace('_', '-')} " not in out] == []


def test_generate_answers_a_chat_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "generate", "--chat", "What is 23 + 58?") == (0, "23 + 58 = 81.\n", "")


def test_env_says_versions_and_simd_levels(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "env")
    assert status == 0
    assert re.search(r"^ray +2\.\d+", out, re.M)
    assert re.search(r"^isa levels .*generic$", out, re.M)


def test_a_command_that_nobody_reads_ends_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "rtp_llm.cli", "env"],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_a_pipe_that_breaks_elsewhere_is_no_quiet_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(cli, "_env", broken)
    reader, writer = os.pipe()
    with os.fdopen(reader), os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(BrokenPipeError):
            cli.main(["env"])


def test_chat_says_that_no_server_is_there(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "Hello")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        assert run(capsys, "chat", "--url", url) == (1, "", f"rtp-llm: {url}: [Errno 111] Connection refused\n")


def test_a_signal_that_hits_c_code_stops_as_any_other() -> None:
    def hit() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except cli._Stopped as stopped:
            raise SystemError("returned a result with an exception set") from stopped

    with pytest.raises(cli._Stopped), cli._stopped_by_signals():
        hit()
    with pytest.raises(SystemError), cli._stopped_by_signals():
        raise SystemError("of its own")


def test_the_ready_text_ends_with_a_curl_of_valid_json() -> None:
    for asks_for_key in (False, True):
        words = shlex.split(cli._ready_text("http://127.0.0.1:8000", "demo", asks_for_key).splitlines()[-1])
        assert words[:2] == ["curl", "http://127.0.0.1:8000/v1/chat/completions"]
        assert json.loads(words[-1])["model"] == "demo"
        assert ("Authorization: Bearer $RTP_LLM_API_KEY" in words) == asks_for_key


def test_the_configuration_page_is_current() -> None:
    check = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "configuration.py"), "--check"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert check.returncode == 0, check.stderr


def test_the_token_is_drawn_once_and_printed_nowhere() -> None:
    drawn = load_config(environ={}).with_token()
    secret = drawn.worker.token.get_secret_value()
    assert len(secret) > 30
    assert drawn.with_token() is drawn
    assert load_config(overrides={"worker.token": drawn.worker.token}, environ={}) == drawn
    set_outside = load_config(environ={"RTP_LLM_WORKER__TOKEN": "s3cret"})
    assert set_outside.with_token().worker.token.get_secret_value() == "s3cret"
    assert secret not in f"{drawn!r} {drawn} {drawn.model_dump()} {drawn.model_dump_json()}"
    with pytest.raises(ConfigError, match=r"worker\.token") as wrong:
        load_config(overrides={"worker.token": 12345678}, environ={})
    assert "12345678" not in str(wrong.value)
