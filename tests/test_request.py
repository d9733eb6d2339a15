"""SamplingParams refuse what can never work."""

import pytest

from rtp_llm.errors import InvalidRequestError
from rtp_llm.request import MAX_STOP_TOKEN_IDS, SamplingParams


def test_stop_token_ids_are_bounded_in_number() -> None:
    assert len(SamplingParams(stop_token_ids=[7] * MAX_STOP_TOKEN_IDS).stop_token_ids or []) == MAX_STOP_TOKEN_IDS
    with pytest.raises(InvalidRequestError, match="stop_token_ids has 129 entries") as refused:
        SamplingParams(stop_token_ids=range(129))
    assert (refused.value.param, refused.value.value) == ("stop_token_ids", 129)
