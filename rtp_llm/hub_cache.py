"""Models by a hub's name, `Qwen/Qwen3-0.6B`, as Hugging Face's tools have left them in this machine's cache. Nothing is ever
downloaded.

    hub/models--Qwen--Qwen3-0.6B/refs/main                  a commit
    hub/models--Qwen--Qwen3-0.6B/snapshots/COMMIT/          config.json, safetensors and tokenizer files
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from rtp_llm.errors import ModelLoadError

_PART = r"[A-Za-z0-9_][\w.-]*"
_NAME = re.compile(rf"{_PART}(/{_PART})?", re.ASCII)
_REVISION = re.compile(rf"{_PART}(/{_PART})*", re.ASCII)
MAX_REVISIONS_SHOWN = 5


def cache_directory(environ: Mapping[str, str] | None = None) -> Path:
    """Where Hugging Face's tools keep models: HF_HUB_CACHE, else `hub` in HF_HOME, else in ~/.cache/huggingface."""
    environ = os.environ if environ is None else environ
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environ.get(name):
            return _expanded(environ[name])
    if environ.get("HF_HOME"):
        return _expanded(environ["HF_HOME"]) / "hub"
    return _expanded(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface" / "hub"


def is_hub_name(path: str) -> bool:
    """Whether `path` is no directory, but could be a model's name in a hub."""
    return _NAME.fullmatch(path) is not None and not Path(path).exists()


def snapshot(name: str, revision: str = "main", environ: Mapping[str, str] | None = None) -> Path:
    """The directory of the model `name`; `revision`: a branch, a tag or a whole commit. REQUIRES: is_hub_name(name).

    Raises:
        ModelLoadError: the cache doesn't have it; says what was looked for, and where.
    """
    hub = cache_directory(environ)
    model = hub / f"models--{name.replace('/', '--')}"
    if not model.is_dir():
        raise ModelLoadError(
            f"model {name}: neither a directory here nor in the hub's cache, which has no {model} "
            "(HF_HOME or HF_HUB_CACHE say where it is; nothing is downloaded)"
        )
    if _REVISION.fullmatch(revision) is None:
        raise ModelLoadError(f"model {name}: revision {revision!r} is none")
    commit = _commit(model / "refs" / revision) or revision
    found = model / "snapshots" / commit
    if "/" in commit or not found.is_dir():
        missing = model / "refs" / revision if commit == revision else found
        raise ModelLoadError(f"model {name}: revision {revision} is not in the cache: no {missing}{_others(model)}")
    return found


def _expanded(path: str) -> Path:
    return Path(os.path.expandvars(path)).expanduser()


def _commit(ref: Path) -> str:
    """Empty: there is no such reference."""
    try:
        text = ref.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return text if re.fullmatch(_PART, text, re.ASCII) else ""


def _others(model: Path) -> str:
    """What is there instead."""
    snapshots = model / "snapshots"
    commits = sorted(each.name for each in snapshots.iterdir()) if snapshots.is_dir() else []
    if not commits:
        return ", it has no snapshot at all"
    more = ", …" if len(commits) > MAX_REVISIONS_SHOWN else ""
    return f"; its snapshots are {', '.join(commits[:MAX_REVISIONS_SHOWN])}{more}"
