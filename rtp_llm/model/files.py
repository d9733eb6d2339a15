"""JSON and text files of a model directory, with errors that name the file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rtp_llm.errors import ModelLoadError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ModelLoadError: the file is missing, unreadable, or holds something else.
    """
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # bad JSON, JSON without end
        raise ModelLoadError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def read_json_if_present(path: Path) -> dict[str, Any]:
    """As `read_json`; {} if there is no such file."""
    return read_json(path) if is_there(path) else {}


def read_text(path: Path) -> str:
    """
    Raises:
        ModelLoadError: the file is missing, unreadable, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelLoadError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ModelLoadError(f"{path}: not UTF-8: {error}") from error


def is_there(path: Path) -> bool:
    """A link to nothing counts: a cache of links has lost what the model needs."""
    return os.path.lexists(path)
