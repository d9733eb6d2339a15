"""Tokens to text with the demo model's tokenizer."""

import math
from pathlib import Path

import pytest

import rtp_llm
from rtp_llm.errors import EngineError
from rtp_llm.model.answer_text import AnswerText
from rtp_llm.model.tokenizer import Tokenizer
from rtp_llm.request import FinishReason, TokenOutput
from rtp_llm.sampling_params import SamplingParams

TOKENIZER = Tokenizer.load(Path(rtp_llm.__file__).parent / "demo")


def outputs(text: str, finish: FinishReason = FinishReason.NONE) -> list[TokenOutput]:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    last = len(ids) - 1
    return [
        TokenOutput(i, token, -0.25, [(token, -0.25)], finish if i == last else FinishReason.NONE)
        for i, token in enumerate(ids)
    ]


def test_half_a_character_waits_for_its_rest() -> None:
    text = AnswerText(TOKENIZER, SamplingParams())
    parts = [text.take([output]).text for output in outputs("né ☃", FinishReason.LENGTH)]
    assert "".join(parts) == "né ☃" and all("\ufffd" not in part for part in parts)


def test_a_stop_string_ends_the_answer_before_it() -> None:
    text = AnswerText(TOKENIZER, SamplingParams(stop=["9"]))
    delta = text.take(outputs("7 8 9 10"))
    assert delta.text == "7 8 " and delta.finish_reason == "stop"
    assert delta.num_tokens < len(outputs("7 8 9 10"))


def test_a_held_back_prefix_of_a_stop_string_goes_out_at_the_end() -> None:
    text = AnswerText(TOKENIZER, SamplingParams(stop=["12"]))
    assert text.take(outputs("1")).text == ""
    delta = text.take(outputs("7", FinishReason.LENGTH))
    assert delta.text == "17" and delta.finish_reason == "length"


def test_logprobs_carry_text_bytes_offset_and_alternatives() -> None:
    text = AnswerText(TOKENIZER, SamplingParams(logprobs=1))
    first, second, *_ = text.take(outputs("1 2")).logprobs
    assert (first.token, first.raw, first.offset, first.logprob) == ("1", b"1", 0, -0.25)
    assert second.offset == 1 and next(iter(second.top))[2] == -0.25


def test_an_offset_is_where_the_tokens_own_text_begins() -> None:
    snow = TOKENIZER.encode("☃", add_special_tokens=False)[0]
    [letter] = TOKENIZER.encode("Z", add_special_tokens=False)
    text = AnswerText(TOKENIZER, SamplingParams(logprobs=0))
    deltas = [text.take([TokenOutput(i, token, -1.0)]) for i, token in enumerate((letter, snow, letter, letter))]
    assert "".join(delta.text for delta in deltas) == "Z\ufffdZZ"
    entries = [(entry.token, entry.offset) for delta in deltas for entry in delta.logprobs]
    assert entries[0::2] == [("Z", 0), ("Z", 2)] and entries[3] == ("Z", 3)
    assert entries[1][0].startswith("bytes:\\xe2") and entries[1][1] == 1


def test_a_token_that_stopped_the_answer_is_listed_but_not_shown() -> None:
    for included, shown in ((False, "7 "), (True, "7 8")):
        sampling = SamplingParams(logprobs=0, skip_special_tokens=False, include_stop_str_in_output=included)
        delta = AnswerText(TOKENIZER, sampling).take(outputs("7 8", FinishReason.STOP))
        assert (delta.text, delta.finish_reason) == (shown, "stop")
        assert delta.num_tokens == len(delta.logprobs) == len(outputs("7 8"))
        assert delta.logprobs[-1].token == "8"


def test_a_stop_string_within_min_tokens_does_not_end_the_answer() -> None:
    tokens = outputs("7 8 9 8 9")
    eight = len(outputs("7 8"))
    sampling = SamplingParams(stop=["8"], min_tokens=eight)
    delta = AnswerText(TOKENIZER, sampling).take(tokens)
    assert (delta.text, delta.finish_reason) == ("7 8 9 ", "stop")
    one_by_one = AnswerText(TOKENIZER, sampling)
    assert "".join(one_by_one.take([token]).text for token in tokens[: delta.num_tokens]) == delta.text


def test_an_answer_that_its_worker_cancelled_is_an_error() -> None:
    with pytest.raises(EngineError, match="token 0"):
        AnswerText(TOKENIZER, SamplingParams()).take([TokenOutput(0, 5, finish_reason=FinishReason.CANCELLED)])
    with pytest.raises(EngineError, match="no token could be sampled at position 3"):
        AnswerText(TOKENIZER, SamplingParams()).take([TokenOutput(3, -1, finish_reason=FinishReason.FAILED)])


def test_a_token_without_probability_has_a_logprob_that_json_can_hold() -> None:
    for tokenizer in (TOKENIZER, None):
        output = TokenOutput(0, 20, -math.inf, [(21, 0.0), (20, -math.inf)])
        [named] = AnswerText(tokenizer, SamplingParams(logprobs=2)).take([output]).logprobs
        assert named.logprob == -9999.0
        assert [top.logprob for top in named.top] == [0.0, -9999.0]


def test_cached_tokens_come_with_the_first_token_alone() -> None:
    text = AnswerText(TOKENIZER, SamplingParams())
    first, later = TokenOutput(0, 20, num_cached_tokens=16), TokenOutput(1, 21, num_cached_tokens=32)
    assert text.take([first, later]).num_cached_tokens == 16
    assert text.take([TokenOutput(2, 22, num_cached_tokens=48)]).num_cached_tokens == 0
