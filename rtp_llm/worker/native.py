"""NativeEngine: what a worker knows of its engine. The step loop, its blocks and its thread are native."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rtp_llm._native import _engine


@dataclass(frozen=True, kw_only=True)
class NativeEngine:
    """A built engine that has not started. Owns all that it stands on."""

    device: Any  # _engine.Device
    native: Any  # _engine.Engine
    model_digest: str

    @property
    def max_model_len(self) -> int:
        return int(self.native.config.max_model_len)

    @property
    def block_tokens(self) -> int:
        return int(self.native.config.block_tokens)

    @property
    def numerics_id(self) -> str:
        return str(self.native.numerics_id())

    @property
    def layout_json(self) -> str:
        return str(self.native.kv_layout.canonical_json(self.model_digest))

    @property
    def layout_fingerprint(self) -> str:
        return str(self.native.kv_layout.fingerprint(self.model_digest))

    @property
    def failure(self) -> str:
        """Why the engine thread has ended by itself; empty while all is well."""
        return self.native.failure() or ""

    def notify_through(self, eventfd: int) -> None:
        """Outputs make it readable. Before start()."""
        self.native.notify_through(eventfd)

    def start(self) -> None:
        self.native.start()

    def stop(self) -> None:
        """Join the engine thread."""
        self.native.stop()

    def take_outputs(self) -> Any:
        """TokenColumns since the last call."""
        return self.native.take_outputs()

    def load(self) -> Any:
        """EngineLoad."""
        return self.native.load()

    def allocations(self) -> list[tuple[int, int, str]]:
        """(address, bytes, tag) of everything on the device."""
        return list(self.device.allocations())

    def check_idle(self) -> None:
        """
        Raises:
            EngineError: a block or a sequence is left over.
        """
        self.native.check_idle()


def describe_difference(here: str, there: str) -> str:
    """What differs between two layouts' canonical JSON, by path with both values."""
    return str(_engine.describe_difference(here, there))
