"""Where the C++ tests and the tests' own modules were built."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build_dir() -> Path:
    """RTP_BUILD_DIR (`make test` sets it), else the build tree that RTP_LLM_NATIVE_DIR points into, else build/dev."""
    if chosen := os.environ.get("RTP_BUILD_DIR"):
        return ROOT / chosen
    if native := os.environ.get("RTP_LLM_NATIVE_DIR"):
        return Path(native).resolve().parent
    return ROOT / "build" / "dev"
