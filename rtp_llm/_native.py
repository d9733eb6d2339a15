"""The one way to the native engine: loads UCX's libraries, then the extension module.

`rtp_llm/engine.py`, `rtp_llm/prefix.py` and `rtp_llm/worker/` write ``from rtp_llm._native import _engine``.

The module lies beside this file in an installed package. With ``RTP_LLM_NATIVE_DIR=<build
dir>/rtp_llm`` it is taken from there instead, under the same name.

Raises:
    ImportError: there is no ``_engine`` where it was looked for, or UCX does not load.
"""

import importlib
import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import libucx

ENGINE = "rtp_llm._engine"
NATIVE_DIR_VARIABLE = "RTP_LLM_NATIVE_DIR"


def load_from(directory: Path) -> None:
    """Load ``_engine`` from `directory` and register it as `rtp_llm._engine`."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = directory / f"_engine{suffix}"
        if path.is_file():
            break
    else:
        raise ImportError(f"{NATIVE_DIR_VARIABLE}={directory} holds no _engine extension module")
    spec = importlib.util.spec_from_file_location(ENGINE, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not an extension module of this Python")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[ENGINE] = module
    sys.modules["rtp_llm"]._engine = module  # type: ignore[attr-defined]


libucx.load_library()
if ENGINE not in sys.modules and (native_dir := os.environ.get(NATIVE_DIR_VARIABLE)):
    load_from(Path(native_dir))

try:
    _engine: Any = importlib.import_module(ENGINE)
except ModuleNotFoundError as error:
    if error.name != ENGINE:
        raise
    raise ModuleNotFoundError(
        f"{Path(__file__).parent} holds no {ENGINE}: these are sources without a built engine. `make setup` builds it in "
        f"place; a package that was installed is found from any other directory",
        name=ENGINE,
    ) from None

__all__ = ["_engine"]
