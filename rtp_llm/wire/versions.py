"""Versions of the protocol: which this build speaks, and which of them two ends speak together. Nothing else asks for one.

    version   adds (docs/protocol.md says what an end does without it)
    2         Committed.times, Request.traceparent and tracestate, newest_protocol in hellos, SamplingParams.logit_bias,
              allowed_token_ids and the penalties

A build speaks its own version and the one before, so that a deployment is updated process by process. Fields and messages
are only ever added; what an older end doesn't know it ignores, and what it doesn't say is a default that means nothing. Where
that would change an answer nothing of it is said to such an end: SamplingParams.protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from rtp_llm.errors import ProtocolError


class Hello(Protocol):
    """Any of the three. `protocol_version` is the oldest version that its end speaks: the only one that version 1 knew of,
    which compared it for equality. `newest_protocol` 0: that one alone."""

    protocol_version: int
    newest_protocol: int


@dataclass(frozen=True)
class Versions:
    oldest: int
    newest: int

    @classmethod
    def of(cls, hello: Hello) -> Versions:
        return cls(hello.protocol_version, max(hello.newest_protocol, hello.protocol_version))

    def write(self, hello: Hello) -> None:
        hello.protocol_version, hello.newest_protocol = self.oldest, self.newest

    def shared(self, other: Versions) -> int:
        """The newest that both speak.

        Raises:
            ProtocolError: there is none.
        """
        version = min(self.newest, other.newest)
        if version < max(self.oldest, other.oldest):
            raise ProtocolError(f"protocol: {self} here, {other} there")
        return version

    def __str__(self) -> str:
        return f"{self.oldest}" if self.oldest == self.newest else f"{self.oldest} to {self.newest}"


SPOKEN = Versions(oldest=1, newest=2)
