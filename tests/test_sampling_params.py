"""SamplingParams refuse what can never work; each field is known by one name wherever it goes."""

import math
from dataclasses import replace
from typing import Any

import pytest

from rtp_llm._native import _engine
from rtp_llm.errors import InvalidRequestError
from rtp_llm.router.schemas import ChatBody, CompletionBody, parse_body
from rtp_llm.sampling_params import (
    FIELDS,
    MAX_ALLOWED_TOKEN_IDS,
    MAX_FLOAT32,
    MAX_LOGIT_BIASES,
    MAX_STOP_CHARS,
    MAX_STOP_TOKEN_IDS,
    MAX_TOKENS,
    Choice,
    Flag,
    Integer,
    Number,
    Only,
    Optional,
    OrElse,
    SamplingParams,
    Texts,
    TokenIds,
    TokenNumbers,
)
from rtp_llm.wire.v1 import types_pb2
from rtp_llm.worker import to_native, to_wire


def test_stop_strings_are_bounded_in_length() -> None:
    SamplingParams(stop=["x" * MAX_STOP_CHARS])
    with pytest.raises(InvalidRequestError, match="stop has a string of 1001 characters, at most 1000") as refused:
        SamplingParams(stop=["a", "x" * 1001])
    assert (refused.value.param, refused.value.value) == ("stop", 1001)


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
        ("logit_bias", [5, 1.0]),
        ("logit_bias", {5: "1"}),
        ("logit_bias", {5: 100.5}),
        ("logit_bias", {"5": math.nan}),
        ("logit_bias", {"five": 1}),
        ("logit_bias", {-5: 1}),
        ("logit_bias", {"1" * 5000: 1}),
        ("allowed_token_ids", 5),
        ("allowed_token_ids", []),
        ("allowed_token_ids", [2**31]),
        ("repetition_penalty", 0),
        ("repetition_penalty", -1.5),
        ("repetition_penalty", 1e-46),  # zero in float32
        ("repetition_penalty", math.inf),
        ("presence_penalty", 2.5),
        ("presence_penalty", math.nan),
        ("frequency_penalty", -2.5),
        ("frequency_penalty", None),
    ],
)
def test_a_bad_value_is_named(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        SamplingParams(**{name: value})
    assert refused.value.param == name
    assert name in refused.value.message
    assert repr(refused.value.value)[:80] in refused.value.message


def test_a_bias_is_named_by_its_token_and_one_token_has_one() -> None:
    assert SamplingParams(logit_bias={"5": 1, 7: -100}).logit_bias == {5: 1, 7: -100}
    with pytest.raises(InvalidRequestError) as refused:
        SamplingParams(logit_bias={"5": 1, "7": 101})
    assert refused.value.message == "logit_bias of token 7 must be a number from -100 to 100, got 101"
    assert (refused.value.param, refused.value.value) == ("logit_bias", 101)
    with pytest.raises(
        InvalidRequestError, match="logit_bias must be an object that names each token id once, got '05'"
    ):
        SamplingParams(logit_bias={"5": 1, "05": 1})


def test_rules_for_tokens_are_bounded_in_number() -> None:
    SamplingParams(
        logit_bias=dict.fromkeys(range(MAX_LOGIT_BIASES), 1.0), allowed_token_ids=range(MAX_ALLOWED_TOKEN_IDS)
    )
    with pytest.raises(InvalidRequestError, match="logit_bias has 1025 entries, at most 1024 are allowed"):
        SamplingParams(logit_bias=dict.fromkeys(range(MAX_LOGIT_BIASES + 1), 1.0))
    with pytest.raises(InvalidRequestError, match="allowed_token_ids has 65537 entries, at most 65536 are allowed"):
        SamplingParams(allowed_token_ids=range(MAX_ALLOWED_TOKEN_IDS + 1))


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.since > 1])
def test_params_know_the_version_of_the_protocol_that_says_them(name: str) -> None:
    assert SamplingParams(logit_bias={}, repetition_penalty=1, presence_penalty=0).protocol == 1
    assert SamplingParams(**{name: other_value(name)}).protocol == FIELDS[name].since


def test_the_extremes_of_float32_are_taken() -> None:
    assert SamplingParams(temperature=MAX_FLOAT32, top_p=1e-37).top_p == 1e-37


def test_lists_may_be_any_iterable() -> None:
    params = SamplingParams(stop=("a", "b"), stop_token_ids=iter([3, 4]))
    assert (params.stop, params.stop_token_ids) == (["a", "b"], [3, 4])


def test_what_an_engine_is_told_has_one_name_in_python_on_the_wire_and_in_the_engine() -> None:
    told = {name for name, field in FIELDS.items() if field.engine is not None}
    assert told == set(types_pb2.SamplingParams.DESCRIPTOR.fields_by_name) == set(_engine.SamplingParams.FIELDS)


COMPUTED = {name for name, field in FIELDS.items() if not isinstance(field.domain, Only)}


def other_value(name: str) -> Any:
    """A value of the field that isn't its default."""
    default, domain = getattr(SamplingParams(), name), FIELDS[name].domain
    while isinstance(domain, Optional):
        domain = domain.domain
    if isinstance(domain, Flag):
        return not default
    if isinstance(domain, TokenIds):
        return [7, 5]
    if isinstance(domain, TokenNumbers):
        return {7: 0.5, 5: -2.0}
    if isinstance(domain, Texts):
        return ["a"]
    if isinstance(domain, OrElse):
        return domain.value
    if isinstance(domain, Choice):
        return domain.texts[0]
    assert isinstance(domain, Integer | Number)
    middle = domain.low / 2 + domain.high / 2
    candidates = [int(middle), domain.low, domain.high] if isinstance(domain, Integer) else [0.5, 0.25]
    return next(value for value in candidates if domain.low <= value <= domain.high and value != default)


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.engine is not None])
def test_a_field_arrives_at_the_receiver_as_it_was_asked_for(name: str) -> None:
    """Router → wire → sender's engine → wire → receiver's engine."""
    complete = SamplingParams(seed=1, max_tokens=MAX_TOKENS)
    asked = replace(complete, **{name: other_value(name)})
    sent = to_native.sampling(types_pb2.SamplingParams(**asked.for_engine()))
    received = to_native.sampling(to_wire.sampling(sent))
    for native in (sent, received):
        assert {each: getattr(native, each) for each in _engine.SamplingParams.FIELDS} == asked.for_engine()
    assert asked.for_engine()[name] != complete.for_engine()[name]


def test_the_engine_names_a_field_that_it_does_not_have_or_whose_type_is_another() -> None:
    with pytest.raises(TypeError, match="nucleus"):
        _engine.SamplingParams(nucleus=0.5)
    with pytest.raises(TypeError, match=r"top_k.*'many'"):
        _engine.SamplingParams(top_k="many")


@pytest.mark.parametrize("body", [CompletionBody, ChatBody])
@pytest.mark.parametrize("name", sorted(COMPUTED - {"logprobs"}))
def test_both_endpoints_take_each_field(body: Any, name: str) -> None:
    asked = {"max_tokens": MAX_TOKENS, name: other_value(name)}
    taken = parse_body(body, {"prompt" if body is CompletionBody else "messages": [], **asked}).sampling({})
    assert getattr(taken, name) == getattr(SamplingParams(**asked), name)


@pytest.mark.parametrize("name", sorted(FIELDS.keys() - COMPUTED))
def test_what_is_not_computed_is_refused_by_name_unless_it_asks_for_nothing(name: str) -> None:
    domain = FIELDS[name].domain
    assert isinstance(domain, Only)
    for neutral in (None, *domain.values):
        assert SamplingParams(**{name: neutral}) == SamplingParams()
    for value in (0.3, "text", {5: 1.0}, [5]):
        with pytest.raises(InvalidRequestError, match=f"{name} is not supported") as refused:
            SamplingParams(**{name: value})
        assert refused.value.param == name
