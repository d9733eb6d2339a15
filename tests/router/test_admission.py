"""Which requests are refused because they would be late."""

from collections.abc import Callable

import pytest

from rtp_llm.config import RouterSettings
from rtp_llm.errors import DeadlineUnreachableError
from rtp_llm.router.admission import Admission, PromptSize
from rtp_llm.router.placement import PlacementQuery, Prediction, Snapshot
from rtp_llm.router.placement.least_loaded import LeastLoaded
from rtp_llm.router.terms import NO_TERMS, Terms


class Predicts(LeastLoaded):
    """A prompt token takes a second, so does a token ahead, and 5 s of work are there."""

    def predicted(self, snapshot: Snapshot, query: PlacementQuery) -> Prediction | None:
        return Prediction(5.0 + query.tokens_ahead + query.prompt_tokens, query.prompt_tokens)


class KnowsNothing(LeastLoaded):
    def predicted(self, snapshot: Snapshot, query: PlacementQuery) -> Prediction | None:
        return None


def admission(policy: LeastLoaded, ahead: Callable[[Terms], int] = lambda terms: 0, **settings: float) -> Admission:
    router = RouterSettings(**settings)  # type: ignore[arg-type]
    return Admission(policy, dict, ahead, lambda: router)


async def test_what_fits_is_admitted_and_what_does_not_is_told_when_it_would() -> None:
    entry = admission(Predicts())
    entry.check(Terms(ttft_timeout_s=15), [PromptSize(10)], waited_s=0.0)
    with pytest.raises(DeadlineUnreachableError, match=r"expected in 15 s, the deadline is 12.5 s") as refused:
        entry.check(Terms(ttft_timeout_s=12.5), [PromptSize(10)], waited_s=0.0)
    assert refused.value.retry_after_s == 2.5


async def test_what_has_passed_since_the_arrival_is_gone() -> None:
    admission(Predicts()).check(Terms(timeout_s=15), [PromptSize(9)], waited_s=1.0)
    with pytest.raises(DeadlineUnreachableError) as refused:
        admission(Predicts()).check(Terms(timeout_s=15), [PromptSize(9)], waited_s=1.5)
    assert refused.value.retry_after_s == 0.5


@pytest.mark.parametrize(
    "late",
    [
        lambda: admission(Predicts()).check(Terms(timeout_s=14), [PromptSize(10)], 0.0),
        lambda: admission(Predicts(), request_timeout_s=14).check(NO_TERMS, [PromptSize(10)], 0.0),
        lambda: admission(Predicts(), ttft_timeout_s=14).check(NO_TERMS, [PromptSize(10)], 0.0),
        lambda: admission(Predicts(), ttft_timeout_s=14).check(Terms(ttft_timeout_s=99), [PromptSize(10)], 0.0),
    ],
)
async def test_each_deadline_counts_and_none_is_more_than_the_setting(late: Callable[[], None]) -> None:
    with pytest.raises(DeadlineUnreachableError) as refused:
        late()
    assert refused.value.retry_after_s == 1


async def test_what_waits_in_the_router_and_what_the_same_body_asks_before_goes_first() -> None:
    terms = Terms(timeout_s=20)
    admission(Predicts(), lambda asked: 5 if asked is terms else 99).check(terms, [PromptSize(10)], 0.0)
    with pytest.raises(DeadlineUnreachableError):
        admission(Predicts(), lambda asked: 6).check(terms, [PromptSize(10)], 0.0)
    with pytest.raises(DeadlineUnreachableError):
        admission(Predicts(), lambda asked: 5).check(terms, [PromptSize(1), PromptSize(10)], 0.0)


async def test_a_policy_that_predicts_is_told_the_prompts_block_hashes() -> None:
    told: list[object] = []

    class Told(LeastLoaded):
        def predicted(self, snapshot: Snapshot, query: PlacementQuery) -> Prediction:
            told.append(query.block_hashes)
            return Prediction(0.0, 0.0)

    admission(Told()).check(NO_TERMS, [PromptSize(10, bytes), PromptSize(10)], 0.0)
    assert told == [bytes, None]


async def test_what_no_worker_is_fast_enough_for_is_not_told_to_come_again() -> None:
    with pytest.raises(DeadlineUnreachableError, match=r"on an idle worker it would take 10 s") as refused:
        admission(Predicts()).check(Terms(timeout_s=9), [PromptSize(10)], 0.0)
    assert refused.value.retry_after_s is None


@pytest.mark.parametrize("policy", [LeastLoaded(), KnowsNothing()])
async def test_all_are_admitted_where_nothing_is_predicted(policy: LeastLoaded) -> None:
    admission(policy).check(Terms(timeout_s=1e-9), [PromptSize(10)], 5.0)
