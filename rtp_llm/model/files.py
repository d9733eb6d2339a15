"""JSON files of a model directory, with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rtp_llm.errors import ModelLoadError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ModelLoadError: the file is missing, unreadable, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelLoadError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # bad UTF-8, bad JSON, JSON without end
        raise ModelLoadError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def read_json_if_present(path: Path) -> dict[str, Any]:
    """As `read_json`; {} if there is no such file."""
    return read_json(path) if path.exists() else {}
