"""SamplingParams refuse what can never work."""

import math
from typing import Any

import pytest

from rtp_llm.errors import InvalidRequestError
from rtp_llm.request import MAX_FLOAT32, MAX_STOP_TOKEN_IDS, SamplingParams


def test_stop_token_ids_are_bounded_in_number() -> None:
    assert len(SamplingParams(stop_token_ids=[7] * MAX_STOP_TOKEN_IDS).stop_token_ids or []) == MAX_STOP_TOKEN_IDS
    with pytest.raises(InvalidRequestError, match="stop_token_ids has 129 entries") as refused:
        SamplingParams(stop_token_ids=range(129))
    assert (refused.value.param, refused.value.value) == ("stop_token_ids", 129)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 0),
        ("n", True),
        ("temperature", -0.5),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", 1e39),  # infinite in float32
        ("top_p", 0),
        ("top_p", 1e-46),  # zero in float32
        ("top_k", -2),
        ("min_p", 1.5),
        ("seed", 2**64),
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("stop", 5),
        ("stop", ["a", 5]),
        ("stop", b"a"),
        ("stop", {"a": 1}),
        ("stop_token_ids", 5),
        ("stop_token_ids", "5"),
        ("stop_token_ids", [-1]),
        ("logprobs", 21),
        ("ignore_eos", "yes"),
        ("ignore_eos", None),
        ("include_stop_str_in_output", 1),
        ("skip_special_tokens", 0),
    ],
)
def test_a_bad_value_is_named(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        SamplingParams(**{name: value})
    assert refused.value.param == name
    assert name in refused.value.message
    assert repr(value[-1] if isinstance(value, list) else value) in refused.value.message


def test_the_extremes_of_float32_are_taken() -> None:
    assert SamplingParams(temperature=MAX_FLOAT32, top_p=1e-37).top_p == 1e-37


def test_lists_may_be_any_iterable() -> None:
    params = SamplingParams(stop=("a", "b"), stop_token_ids=iter([3, 4]))
    assert (params.stop, params.stop_token_ids) == (["a", "b"], [3, 4])
