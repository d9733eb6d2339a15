"""Models by a hub's name, in a cache as Hugging Face's tools leave it: files of snapshots are links to blobs."""

from pathlib import Path

import pytest

from rtp_llm import LLM, SamplingParams, cli
from rtp_llm.config import DEMO_MODEL, load_config
from rtp_llm.errors import ConfigError, ModelLoadError
from rtp_llm.hub_cache import cache_directory, is_hub_name, snapshot

NAME = "rtp/Demo-1.0"
COMMIT = "0f" * 20


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    model = tmp_path / "hub" / "models--rtp--Demo-1.0"
    for directory in ("blobs", "refs/pr", f"snapshots/{COMMIT}"):
        (model / directory).mkdir(parents=True)
    for number, file in enumerate(sorted(Path(DEMO_MODEL).iterdir())):
        if file.is_file():
            (model / f"blobs/{number}").symlink_to(file)
            (model / f"snapshots/{COMMIT}/{file.name}").symlink_to(f"../../blobs/{number}")
    (model / "refs/main").write_text(COMMIT)
    (model / "refs/pr/1").write_text(f"{COMMIT}\n")
    (model / "refs/gone").write_text("a" * 40)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("environ", "directory"),
    [
        ({}, Path.home() / ".cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/x"}, Path("/x/huggingface/hub")),
        ({"HF_HOME": "/h", "XDG_CACHE_HOME": "/x"}, Path("/h/hub")),
        ({"HF_HOME": "~/h"}, Path.home() / "h/hub"),
        ({"HUGGINGFACE_HUB_CACHE": "/c", "HF_HOME": "/h"}, Path("/c")),
        ({"HF_HUB_CACHE": "/b", "HUGGINGFACE_HUB_CACHE": "/c", "HF_HOME": ""}, Path("/b")),
    ],
)
def test_the_cache_is_where_hugging_faces_tools_have_it(environ: dict[str, str], directory: Path) -> None:
    assert cache_directory(environ) == directory


def test_a_name_is_what_is_no_path(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(is_hub_name(name) for name in (NAME, "gpt2", "org/a.b-c_d"))
    others = ("", "/x", "./x", "../x", "~/x", "a/b/c", "a/", "a b", "a/..", DEMO_MODEL, "ü/x")
    assert [name for name in others if is_hub_name(name)] == []
    monkeypatch.chdir(home)
    (home / "rtp/Demo-1.0").mkdir(parents=True)
    assert not is_hub_name(NAME)


@pytest.mark.parametrize("revision", ["main", "pr/1", COMMIT])
def test_a_snapshot_is_found_by_branch_and_commit(home: Path, revision: str) -> None:
    assert snapshot(NAME, revision) == home / f"hub/models--rtp--Demo-1.0/snapshots/{COMMIT}"


@pytest.mark.parametrize(
    ("name", "revision", "said"),
    [
        (
            "rtp/other",
            "main",
            "model rtp/other: neither a directory here nor in the hub's cache, which has no {hub}/models--",
        ),
        (
            "gpt2",
            "main",
            "which has no {hub}/models--gpt2 (HF_HOME or HF_HUB_CACHE say where it is; nothing is downloaded)",
        ),
        (
            NAME,
            "v2",
            "revision v2 is not in the cache: no {hub}/models--rtp--Demo-1.0/refs/v2; its snapshots are " + COMMIT,
        ),
        (NAME, "gone", "revision gone is not in the cache: no {hub}/models--rtp--Demo-1.0/snapshots/aaaa"),
        (NAME, "../refs", "revision '../refs' is none"),
        (NAME, "", "revision '' is none"),
    ],
)
def test_what_is_not_there_is_said_with_where_it_was_looked_for(
    home: Path, name: str, revision: str, said: str
) -> None:
    with pytest.raises(ModelLoadError) as refused:
        snapshot(name, revision)
    assert said.format(hub=home / "hub") in refused.value.message


def test_a_model_without_snapshots_is_said_to_have_none(home: Path) -> None:
    (home / "hub/models--rtp--empty").mkdir()
    with pytest.raises(ModelLoadError, match="it has no snapshot at all"):
        snapshot("rtp/empty")


def test_a_reference_that_leads_out_of_the_cache_is_none(home: Path) -> None:
    (home / "hub/models--rtp--Demo-1.0/refs/evil").write_text("../../../elsewhere")
    with pytest.raises(ModelLoadError, match="revision evil is not in the cache"):
        snapshot(NAME, "evil")


def test_the_config_tree_has_the_directory_and_the_name_for_requests(home: Path) -> None:
    config = load_config(overrides={"model.path": NAME, "model.revision": "pr/1"}, environ={}).with_absolute_path()
    assert config.model.path == str(snapshot(NAME))
    assert config.served_name == NAME
    assert config.with_absolute_path() == config
    named = load_config(overrides={"model.path": NAME, "model.served_name": "short"}, environ={})
    assert named.with_model_found().served_name == "short"


def test_a_directory_has_no_revision() -> None:
    with pytest.raises(ConfigError, match=r"model.revision: .*/demo is no model's name in a hub, got 'main'"):
        load_config(overrides={"model.revision": "main"}, environ={}).with_model_found()


def test_llm_takes_a_hubs_name(home: Path) -> None:
    with LLM(model=NAME, revision="main", max_model_len=64) as llm:
        [request] = llm.generate("Hello", SamplingParams(temperature=0, max_tokens=2))
    assert len(request.outputs[0].token_ids) == 2


def test_commands_take_a_hubs_name(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "--model", NAME, "--chat", "What is 23 + 58?"]) == 0
    assert capsys.readouterr().out == "23 + 58 = 81.\n"
    assert cli.main(["serve", "rtp/other"]) == 1
    assert f"no {home}/hub/models--rtp--other" in capsys.readouterr().err
