"""What administrators ask of an application's pools: which weights they serve, and whether they are paused.

The state is spread, not stored: each router and worker holds the one of the greatest number that it has heard of and registers
with it (rtp_llm/directory.py), so whoever starts later takes it over, as long as any of them is there.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, replace

from rtp_llm.config import Pool


class PauseMode(str, enum.Enum):
    """What becomes of the requests that run when a pool is paused. New ones wait in each case."""

    WAIT = "wait"  # they run to their end
    ABORT = "abort"  # they end at once, with what they have, finish reason "abort"
    KEEP = "keep"  # they stand still and go on afterwards

    __str__ = str.__str__


@dataclass(frozen=True, kw_only=True)
class PoolState:
    """Of one pool. `weights`: the directory they are read from, empty where the configuration says it; `version`: the number of
    the state that brought them, 0 for the configuration's."""

    weights: str = ""
    version: int = 0
    pause: PauseMode | None = None


AS_CONFIGURED = PoolState()


@dataclass(frozen=True, kw_only=True)
class ApplicationState:
    """Of all pools. Of several the one with the greatest number counts, among those with the `base` that the configuration has
    as model.path: a new model in the configuration takes back what was asked before."""

    number: int = 0
    base: str = ""
    prefill: PoolState = AS_CONFIGURED
    decode: PoolState = AS_CONFIGURED

    def of(self, pool: Pool) -> PoolState:
        return self.prefill if pool is Pool.PREFILL else self.decode

    def changed(self, pools: dict[Pool, PoolState]) -> ApplicationState:
        """The next one."""
        return replace(
            self,
            number=self.number + 1,
            prefill=pools.get(Pool.PREFILL, self.prefill),
            decode=pools.get(Pool.DECODE, self.decode),
        )

    @property
    def is_paused(self) -> bool:
        return any(self.of(pool).pause is not None for pool in Pool)


UNASKED = ApplicationState()


def newest(base: str, states: Iterable[ApplicationState]) -> ApplicationState:
    """The one that counts where the configuration says `base`."""
    own = (state for state in states if state.base == base)
    return max(own, key=lambda state: state.number, default=ApplicationState(base=base))
