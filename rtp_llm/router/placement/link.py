"""Links: how long handovers keep answers waiting, by sender and receiver.

What counts is the time from an answer's first token to the moment when its KV is whole at R: what of the sending isn't hidden
behind the prompt's computation. It is kept as seconds a token; what each handover takes besides, as FIXED_TOKENS more would.
"""

from __future__ import annotations

import math

NEWEST = 0.3  # weight of the newest handover
FIXED_TOKENS = 256
BELIEVED_S = 10.0  # so long after its last handover a link is as good as unknown: one that was slow is tried again
MAX_LINKS = 64  # of one receiver: those used last


class Link:
    """Of one pair, or of all pairs of one worker. Rates within a factor of about 1.4 count alike: what is measured
    scatters, and the fastest by chance isn't to be preferred."""

    __slots__ = ("_mean", "measured_at", "token_s")

    def __init__(self) -> None:
        self._mean = 0.0
        self.token_s = 0.0  # rounded to a power of 2
        self.measured_at = -math.inf

    def observe(self, token_s: float, now: float, unknown: float) -> None:
        """`unknown`: what it counted as before, if this is the first handover: that one may have had to connect."""
        before = self._mean if now - self.measured_at < BELIEVED_S else unknown
        self._mean = before + NEWEST * (token_s - before)
        self.token_s = 2.0 ** round(math.log2(self._mean)) if self._mean > 0 else 0.0
        self.measured_at = now

    def believed(self, now: float, unknown: float) -> float:
        return self.token_s if now - self.measured_at < BELIEVED_S else unknown


class Links:
    """Of one worker."""

    __slots__ = ("_from", "_least_from", "_received", "_sent")

    def __init__(self) -> None:
        self._from: dict[str, Link] = {}  # by sender, the one that was used last at the end
        self._least_from = math.inf
        self._sent = Link()  # to whomever
        self._received = Link()  # from whomever

    def sent(self, token_s: float, now: float, unknown: float) -> None:
        self._sent.observe(token_s, now, unknown)

    def received(self, sender: str, token_s: float, now: float, unknown: float) -> None:
        self._received.observe(token_s, now, unknown)
        link = self._from.pop(sender, None) or Link()
        link.observe(token_s, now, unknown)
        self._from[sender] = link
        if len(self._from) > MAX_LINKS:
            del self._from[next(iter(self._from))]
        self._least_from = min(link.token_s for link in self._from.values())

    def token_s(self, sender: str, links: Links, now: float, unknown: float) -> float:
        """From `sender`, whose own are `links`. A pair that isn't known takes the mean of what both take with others: a slow
        one may be the other's fault. `unknown`: of a worker of which nothing is known either."""
        link = self._from.get(sender)
        if link is not None and now - link.measured_at < BELIEVED_S:
            return link.token_s
        return (self._received.believed(now, unknown) + links._sent.believed(now, unknown)) / 2

    def sent_token_s(self, now: float, unknown: float) -> float:
        """To whomever."""
        return self._sent.believed(now, unknown)

    def least_token_s(self, sent_token_s: float, now: float, unknown: float) -> float:
        """From any sender, at least, of which none takes less than `sent_token_s` with others."""
        received = (self._received.believed(now, unknown) + sent_token_s) / 2
        return received if received < self._least_from else self._least_from
