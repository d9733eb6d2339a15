"""What a replica does to its log."""

import builtins
import io
import logging

import pytest
from ray.serve._private.logging_utils import redirected_print

from rtp_llm import replica


def test_a_traceback_stays_readable_where_serve_has_replaced_print(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtins, "print", redirected_print)
    out = io.StringIO()
    ours, behind = logging.StreamHandler(out), logging.StreamHandler(out)
    ours.setFormatter(replica._Formatter("%(message)s"))
    behind.setFormatter(logging.Formatter("%(message)s"))
    log = logging.Logger("a replica")
    for handler in (ours, behind):
        log.addHandler(handler)
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("failed")
    said = out.getvalue()
    assert said.count("failed\nTraceback (most recent call last):\n  File ") == 2
    assert said.count("\nValueError: broken\n") == 2
    assert "('" not in said
