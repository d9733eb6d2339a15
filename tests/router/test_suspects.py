"""Prompts that ended workers, and the budget of retries."""

import pytest

from rtp_llm.errors import SuspectError
from rtp_llm.request import Request
from rtp_llm.router.suspects import MAX_PROMPTS, REFUSED_S, EndedWorkers, RetryBudget, digest_of
from rtp_llm.sampling_params import SamplingParams


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def request(*prompt: int, salt: str = "") -> Request:
    return Request(request_id="r", prompt=list(prompt), sampling=SamplingParams(), cache_salt=salt)


def test_a_prompt_is_refused_for_ten_minutes_and_only_that() -> None:
    clock = Clock()
    ended = EndedWorkers(clock)
    ended.add(digest_of(request(1, 2, 3)))
    clock.now = 1.5
    with pytest.raises(SuspectError, match="this prompt of 3 tokens has ended workers and is refused for 598 s more"):
        ended.check(request(1, 2, 3))
    for other in (request(1, 2), request(1, 2, 4), request(1, 2, 3, salt="x")):
        ended.check(other)
    clock.now = REFUSED_S
    ended.check(request(1, 2, 3))


def test_the_last_ones_are_remembered() -> None:
    clock = Clock()
    ended = EndedWorkers(clock)
    for number in range(MAX_PROMPTS + 1):
        ended.add(digest_of(request(number)))
        ended.add(digest_of(request(1)))  # again: it isn't the oldest any more
    ended.check(request(0))
    for number in (1, 2, MAX_PROMPTS):
        with pytest.raises(SuspectError):
            ended.check(request(number))


def test_a_burst_of_retries_goes_at_once_and_the_others_one_after_another() -> None:
    budget = RetryBudget(rate=10, burst=3)
    assert [budget.take(100.0) for _ in range(5)] == pytest.approx([0, 0, 0, 0.1, 0.2])
    assert budget.take(100.1) == pytest.approx(0.2)  # who came before is still ahead
    assert [budget.take(200.0) for _ in range(4)] == pytest.approx([0, 0, 0, 0.1])


def test_routers_share_the_budget() -> None:
    budget = RetryBudget(rate=10, burst=4)
    assert [budget.take(100.0, num_routers=2) for _ in range(4)] == pytest.approx([0, 0, 0.2, 0.4])
