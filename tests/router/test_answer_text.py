"""Tokens to text with the demo model's tokenizer."""

from pathlib import Path

import rtp_llm
from rtp_llm.model.tokenizer import Tokenizer
from rtp_llm.request import FinishReason, SamplingParams, TokenOutput
from rtp_llm.router.answer_text import AnswerText

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
