"""Admission: refuses at once what by the policy's prediction can't meet its deadline. docs/placement.md."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rtp_llm.config import RouterSettings
from rtp_llm.errors import DeadlineUnreachableError
from rtp_llm.router.placement import PlacementQuery, Policy, Predictor, Snapshot
from rtp_llm.router.terms import Terms


class PromptSize(NamedTuple):
    tokens: int  # at least so many
    block_hashes: Callable[[int], bytes] | None = None  # as a PlacementQuery's


class Admission:
    """`snapshot` is asked for the fleet, `tokens_ahead` for the prompt tokens that go before a request on such terms. A policy
    that predicts nothing admits all."""

    def __init__(
        self,
        policy: Policy,
        snapshot: Callable[[], Snapshot],
        tokens_ahead: Callable[[Terms], int],
        settings: Callable[[], RouterSettings],
    ) -> None:
        self._predictor = policy if isinstance(policy, Predictor) else None
        self._snapshot = snapshot
        self._tokens_ahead = tokens_ahead
        self._settings = settings

    def check(self, terms: Terms, prompts: Sequence[PromptSize], waited_s: float) -> None:
        """`waited_s`: since the request's arrival.

        Raises:
            DeadlineUnreachableError: the first token of one of them would come too late.
        """
        if self._predictor is None:
            return
        settings = self._settings()
        limit_s = min(terms.timeout_s, terms.ttft_timeout_s, settings.request_timeout_s, settings.ttft_timeout_s)
        ahead = self._tokens_ahead(terms)
        for prompt in prompts:
            query = PlacementQuery(
                prompt_tokens=prompt.tokens,
                total_tokens=prompt.tokens + 1,
                block_hashes=prompt.block_hashes,
                tokens_ahead=ahead,
                now=asyncio.get_running_loop().time(),
                waited_s=waited_s,
            )
            found = self._predictor.predicted(self._snapshot(), query)
            if found is not None and waited_s + found.ttft_s > limit_s:
                raise _refusal(found.ttft_s, found.idle_ttft_s, limit_s, waited_s)
            ahead += prompt.tokens


def _refusal(ttft_s: float, idle_ttft_s: float, limit_s: float, waited_s: float) -> DeadlineUnreachableError:
    text = f"the first token is expected in {ttft_s:.3g} s, the deadline is {limit_s:g} s after the request's arrival"
    if idle_ttft_s > limit_s:
        return DeadlineUnreachableError(f"{text}; on an idle worker it would take {idle_ttft_s:.3g} s")
    return DeadlineUnreachableError(text, retry_after_s=waited_s + ttft_s - limit_s)
