"""What a request asks of the router: timeouts."""

import math
from typing import Any

import pytest

from rtp_llm.errors import InvalidRequestError
from rtp_llm.router.schemas import ChatBody, parse_body
from rtp_llm.router.terms import NO_TERMS, Terms


def body(**fields: Any) -> Terms:
    return parse_body(ChatBody, {"messages": [], **fields}).terms()


def headers(given: dict[str, str]) -> Terms:
    return Terms.of_headers(given, "X-Session-Id")


def test_a_body_says_timeouts_in_seconds_or_in_milliseconds() -> None:
    assert body(timeout=2, ttft_timeout_ms=250) == Terms(timeout_s=2, ttft_timeout_s=0.25)
    assert body(timeout_ms=1500.0, ttft_timeout=0.5) == Terms(timeout_s=1.5, ttft_timeout_s=0.5)
    assert body(timeout=2, timeout_ms=1000).timeout_s == 1
    assert body(timeout_ms=-1, ttft_timeout_ms=None) == body() == NO_TERMS


@pytest.mark.parametrize("name", ["timeout", "timeout_ms", "ttft_timeout", "ttft_timeout_ms"])
@pytest.mark.parametrize("value", [0, -2, "soon", True, [1]])
def test_a_timeout_that_is_none_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        body(**{name: value})
    assert (refused.value.param, refused.value.value) == (name, value)


@pytest.mark.parametrize("value", ["", "nan", "inf", "0", "-3", "1e999", "5s"])
def test_a_header_that_holds_no_timeout_is_refused_by_name(value: str) -> None:
    with pytest.raises(InvalidRequestError, match="X-Request-Timeout must be a number above 0, or -1") as refused:
        headers({"X-Request-Timeout": value})
    assert refused.value.param == "X-Request-Timeout"
    assert headers({"X-Request-Timeout": "-1"}) == NO_TERMS


def test_of_several_timeouts_the_least_holds() -> None:
    one, other = Terms(timeout_s=3, ttft_timeout_s=2), Terms(timeout_s=4)
    assert one.joined(other) == other.joined(one) == Terms(timeout_s=3, ttft_timeout_s=2)
    assert NO_TERMS.joined(NO_TERMS).timeout_s == math.inf


def test_a_priority_is_a_whole_number_that_an_engine_can_hold() -> None:
    assert [body(priority=value).priority for value in (None, 0, -3.0, 2**31 - 1)] == [0, 0, -3, 2**31 - 1]
    assert Terms(timeout_s=3).joined(body(priority=-3)) == Terms(timeout_s=3, priority=-3)
    for value in (2**31, 0.5, "high", True):
        with pytest.raises(InvalidRequestError, match="priority") as refused:
            body(priority=value)
        assert refused.value.param == "priority"


def test_a_session_is_named_by_its_header_else_by_the_user() -> None:
    assert headers({}).joined(body(user="u")).session == "u"
    assert headers({"X-Session-Id": "s"}).joined(body(user="u")).session == "s"
    assert headers({"X-Session-Id": "s"}).joined(body()).session == "s"
    assert headers({}).joined(body()).session == ""
