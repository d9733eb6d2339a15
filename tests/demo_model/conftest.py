"""The modules of tools/demo_model, which is no package: its files import each other by bare names."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "demo_model"


@pytest.fixture(scope="session")
def demo() -> Path:
    """The folder of the shipped model."""
    return ROOT / "rtp_llm" / "demo"


@pytest.fixture(scope="session")
def tokenizer(demo: Path) -> Tokenizer:
    return Tokenizer.from_file(str(demo / "tokenizer.json"))


@pytest.fixture(scope="module")
def tool() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a module of the tool by its bare name; afterwards sys.modules is as it was."""
    names = {path.stem for path in TOOL.glob("*.py")}
    before = {name: sys.modules.pop(name) for name in names & sys.modules.keys()}
    sys.path.insert(0, str(TOOL))
    yield importlib.import_module
    sys.path.remove(str(TOOL))
    for name in names & sys.modules.keys():
        del sys.modules[name]
    sys.modules.update(before)
