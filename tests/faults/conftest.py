"""The undisturbed answers, computed once."""

from __future__ import annotations

import pytest

from tests.cluster.workload import Answer, Undivided
from tests.faults.rig import EIGHT


@pytest.fixture(scope="session")
def undisturbed() -> list[Answer]:
    with Undivided.engine() as engine:
        return engine.answers(EIGHT)
