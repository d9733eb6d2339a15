"""What losses of workers leave behind at a router: prompts that ended workers, and how fast answers are tried again."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Callable

from rtp_llm.errors import SuspectError
from rtp_llm.request import Request
from rtp_llm.wire.session import DIGEST_BYTES

REFUSED_S = 600.0
MAX_PROMPTS = 1024


class EndedWorkers:
    """Prompts under whose first steps workers were lost until nothing else could be blamed: refused for REFUSED_S, the last
    MAX_PROMPTS of them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until: OrderedDict[bytes, float] = OrderedDict()  # by digest, in order of time

    def add(self, digest: bytes) -> None:
        self._until.pop(digest, None)
        self._until[digest] = self._clock() + REFUSED_S
        if len(self._until) > MAX_PROMPTS:
            self._until.popitem(last=False)

    def check(self, request: Request) -> None:
        """
        Raises:
            SuspectError: its prompt is one of them.
        """
        now = self._clock()
        while self._until and next(iter(self._until.values())) <= now:
            self._until.popitem(last=False)
        if self._until and (until := self._until.get(digest_of(request))) is not None:
            raise SuspectError(
                f"this prompt of {len(request.prompt)} tokens has ended workers and is refused for {until - now:.0f} s more"
            )


def digest_of(request: Request) -> bytes:
    """Of what a worker computes first."""
    digest = hashlib.blake2b(array("i", request.prompt).tobytes(), digest_size=DIGEST_BYTES)
    digest.update(request.cache_salt.encode())
    return digest.digest()


class RetryBudget:
    """Paces attempts that follow a loss: `burst` at once, `rate` a second in the long run, for all routers together."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, float(burst)
        self._left = self._burst
        self._at = 0.0

    def take(self, now: float, num_routers: int = 1) -> float:
        """Seconds until this attempt's turn; those that come later have theirs after it."""
        rate, burst = self._rate / num_routers, self._burst / num_routers
        self._left = min(burst, self._left + (now - self._at) * rate) - 1
        self._at = now
        return 0.0 if self._left >= 0 else -self._left / rate
