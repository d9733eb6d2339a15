"""Terms: what a request asks of the router itself, in its headers and in its body."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rtp_llm.errors import InvalidRequestError, shortened

NO_TIMEOUT = -1  # as RTP-LLM's clients write it
TIMEOUT_HEADER = "X-Request-Timeout"
TTFT_TIMEOUT_HEADER = "X-TTFT-Timeout"


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Seconds count from the request's arrival; infinite: as the settings have it."""

    tenant: str = ""  # the name of the request's API key, where keys are asked for
    session: str = ""  # whose requests had better go to the same workers
    priority: int = 0  # the least goes first
    timeout_s: float = math.inf  # until the answer is whole
    ttft_timeout_s: float = math.inf

    @classmethod
    def of_headers(cls, headers: Mapping[str, str], session_header: str, tenant: str = "") -> Terms:
        """
        Raises:
            InvalidRequestError: a header doesn't hold what it should.
        """
        return cls(
            tenant=tenant,
            session=headers.get(session_header, ""),
            timeout_s=seconds_of(TIMEOUT_HEADER, headers.get(TIMEOUT_HEADER)),
            ttft_timeout_s=seconds_of(TTFT_TIMEOUT_HEADER, headers.get(TTFT_TIMEOUT_HEADER)),
        )

    def joined(self, other: Terms) -> Terms:
        """Those of headers and of the body `other`: of two timeouts the lesser."""
        return replace(
            self,
            session=self.session or other.session,
            priority=other.priority,
            timeout_s=min(self.timeout_s, other.timeout_s),
            ttft_timeout_s=min(self.ttft_timeout_s, other.ttft_timeout_s),
        )


NO_TERMS = Terms()


def seconds_of(param: str, value: Any, unit_s: float = 1.0) -> float:
    """Of a timeout in units of `unit_s`; None and NO_TIMEOUT: infinite.

    Raises:
        InvalidRequestError: it is no number above 0.
    """
    if value is None:
        return math.inf
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if number == NO_TIMEOUT:
        return math.inf
    if not 0 < number < math.inf:
        text = f"{param} must be a number above 0, or -1 for none, got {shortened(value)}"
        raise InvalidRequestError(text, param=param, value=value)
    return number * unit_s
