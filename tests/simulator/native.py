"""The machines under test, as the bindings give them."""

from __future__ import annotations

from typing import Any

from rtp_llm._native import _engine

engine: Any = _engine
message: Any = _engine.message
event: Any = _engine.event
action: Any = _engine.action
