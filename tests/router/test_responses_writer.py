"""What /v1/responses says of an answer, written out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from rtp_llm.errors import OverloadedError, RtpLlmError
from rtp_llm.model.answer_text import Delta, NamedToken, TokenLogprob, ToolCall
from rtp_llm.router.answers import Answers, Question
from rtp_llm.router.response_store import AskedResponse
from rtp_llm.router.responses_writer import ResponsesWriter
from rtp_llm.sampling_params import SamplingParams

SHOWN = {"instructions": None, "tools": []}
STOP = Delta(finish_reason="stop", num_tokens=1)


class OnePrompt:
    num_tokens = 5
    num_choices = 1
    logprobs = True
    token_ids: Sequence[int] = ()
    sampling = SamplingParams()


def writer() -> ResponsesWriter:
    asked = AskedResponse(shown=json.dumps(SHOWN).encode(), input=[], store=False)
    return ResponsesWriter("demo", Question(prompts=[], stream=True, include_usage=False, response=asked))


def answers() -> Answers:
    made = Answers("r", [OnePrompt()])  # type: ignore[list-item]
    made.usage.completion_tokens, made.usage.cached_tokens, made.usage.reasoning_tokens = 4, 3, 2
    return made


def named(value: Any, names: dict[str, str]) -> Any:
    """With its random ids as #0, #1, … in the order in which they come."""
    if isinstance(value, dict):
        return {key: named(each, names) for key, each in value.items()}
    if isinstance(value, list):
        return [named(each, names) for each in value]
    if isinstance(value, str) and value.startswith(("msg_", "fc_", "rs_")):
        return names.setdefault(value, f"#{len(names)}")
    return value


def events(*deltas: Delta, error: Exception | None = None) -> list[dict[str, Any]]:
    """Without the responses of the first two and the last one, which `last` has."""
    write, made = writer(), answers()
    texts = [event for delta in deltas for event in write.events_of(made, 0, delta)]
    texts += list(write.last_events(made) if error is None else write.failed(error))
    found, names = [], {}  # type: ignore[var-annotated]
    for number, text in enumerate(texts):
        head, data, *end = text.decode().split("\n")
        body = json.loads(data.removeprefix("data: "))
        assert head == f"event: {body['type']}" and end == ["", ""] and body.pop("sequence_number") == number
        found.append(named(body, names))
    return found


def shortened(all_events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Their types without `response.`, and nothing of whole responses."""
    return [
        {**{key: value for key, value in each.items() if key != "response"}, "type": each["type"][len("response.") :]}
        for each in all_events
    ]


def test_a_message_grows_within_one_item_and_one_part() -> None:
    place = {"item_id": "#0", "output_index": 0, "content_index": 0}
    message = {"id": "#0", "type": "message", "role": "assistant"}
    part = {"type": "output_text", "text": "Hello, world", "annotations": [], "logprobs": []}
    told = events(Delta(text="Hello,", num_tokens=2), Delta(num_tokens=1), Delta(text=" world", num_tokens=1), STOP)
    assert shortened(told) == [
        {"type": "created"},
        {"type": "in_progress"},
        {"type": "output_item.added", "output_index": 0, "item": {**message, "status": "in_progress", "content": []}},
        {"type": "content_part.added", **place, "part": {**part, "text": ""}},
        {"type": "output_text.delta", **place, "delta": "Hello,", "logprobs": []},
        {"type": "output_text.delta", **place, "delta": " world", "logprobs": []},
        {"type": "output_text.done", **place, "text": "Hello, world", "logprobs": []},
        {"type": "content_part.done", **place, "part": part},
        {"type": "output_item.done", "output_index": 0, "item": {**message, "status": "completed", "content": [part]}},
        {"type": "completed"},
    ]
    begun, response = told[0]["response"], told[-1]["response"]
    assert begun == told[1]["response"]
    assert (begun["status"], begun["output"], begun["usage"], begun["completed_at"]) == ("in_progress", [], None, None)
    assert response["id"] == begun["id"] and response["output"] == [told[-2]["item"]]
    assert {**SHOWN, "model": "demo", "object": "response", "error": None, "store": False}.items() <= response.items()
    assert response["usage"] == {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 9,
    }


def test_reasoning_text_and_calls_are_items_in_the_order_in_which_they_come() -> None:
    told = events(
        Delta(reasoning="so", num_tokens=1),
        Delta(reasoning=" it", text="Look", num_tokens=2),
        Delta(tool_calls=[ToolCall(0, "call_1", "f", '{"a":'), ToolCall(0, "", "", "1}")], num_tokens=2),
        Delta(tool_calls=[ToolCall(1, "call_2", "g", "")], num_tokens=1),
        Delta(text="done", num_tokens=1),
        Delta(finish_reason="tool_calls", num_tokens=1),
    )
    place = {"item_id": "#0", "output_index": 0, "content_index": 0}
    thought = {"id": "#0", "type": "reasoning", "summary": []}
    content = {"type": "reasoning_text", "text": "so it"}
    call = {"id": "#2", "type": "function_call", "call_id": "call_1", "name": "f"}
    assert shortened(told[2:9]) == [
        {"type": "output_item.added", "output_index": 0, "item": {**thought, "status": "in_progress", "content": []}},
        {"type": "content_part.added", **place, "part": {**content, "text": ""}},
        {"type": "reasoning_text.delta", **place, "delta": "so"},
        {"type": "reasoning_text.delta", **place, "delta": " it"},
        {"type": "reasoning_text.done", **place, "text": "so it"},
        {"type": "content_part.done", **place, "part": content},
        {
            "type": "output_item.done",
            "output_index": 0,
            "item": {**thought, "status": "completed", "content": [content]},
        },
    ]
    assert shortened(told[15:20]) == [
        {"type": "output_item.added", "output_index": 2, "item": {**call, "status": "in_progress", "arguments": ""}},
        {"type": "function_call_arguments.delta", "item_id": "#2", "output_index": 2, "delta": '{"a":'},
        {"type": "function_call_arguments.delta", "item_id": "#2", "output_index": 2, "delta": "1}"},
        {"type": "function_call_arguments.done", "item_id": "#2", "output_index": 2, "arguments": '{"a":1}'},
        {
            "type": "output_item.done",
            "output_index": 2,
            "item": {**call, "status": "completed", "arguments": '{"a":1}'},
        },
    ]
    output = told[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call", "function_call", "message"]
    assert [item["status"] for item in output] == ["completed"] * 5 and told[-1]["type"] == "response.completed"
    assert [each["item"] for each in told if each["type"] == "response.output_item.done"] == output


@pytest.mark.parametrize(("reason", "why"), [("length", "max_output_tokens"), ("abort", "abort")])
def test_what_is_cut_is_incomplete_and_so_is_its_last_item(reason: str, why: str) -> None:
    told = events(Delta(reasoning="so", num_tokens=1), Delta(text="It", num_tokens=1, finish_reason=reason))
    response = told[-1]["response"]
    assert (told[-1]["type"], response["status"]) == ("response.incomplete", "incomplete")
    assert response["incomplete_details"] == {"reason": why} and response["completed_at"] is None
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]


def test_an_answer_of_nothing_is_an_empty_message() -> None:
    [item] = events(STOP)[-1]["response"]["output"]
    assert item["content"] == [{"type": "output_text", "text": "", "annotations": [], "logprobs": []}]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OverloadedError("too many"), {"code": "rate_limit_exceeded", "message": "too many"}),
        (RtpLlmError("lost"), {"code": "server_error", "message": "lost"}),
        (ValueError("a secret"), {"code": "server_error", "message": "internal error"}),
    ],
)
def test_a_failure_ends_the_stream_with_what_there_is(error: Exception, told: dict[str, str]) -> None:
    *_, last = events(Delta(text="It", num_tokens=1), error=error)
    assert (last["type"], last["response"]["status"], last["response"]["error"]) == ("response.failed", "failed", told)
    [item] = last["response"]["output"]
    assert item["status"] == "incomplete" and item["content"][0]["text"] == "It"
    assert [each["type"] for each in events(error=error)] == [
        "response.created",
        "response.in_progress",
        "response.failed",
    ]


def logprob(token: str) -> TokenLogprob:
    return TokenLogprob(token, token.encode(), -0.5, 0, [NamedToken(token, token.encode(), -0.5)])


def grown(text: str = "", *tokens: str, **fields: Any) -> Delta:
    return Delta(text=text, logprobs=[logprob(token) for token in tokens], num_tokens=len(tokens), **fields)


def test_logprobs_are_those_of_the_texts_tokens() -> None:
    """Not of reasoning and calls; of a token whose text is held back they come with it."""
    deltas = [
        grown("", "a", reasoning="a"),
        grown("", "</think>"),
        grown("", "\n"),
        grown("It", "It"),
        grown("", " is"),
        grown(" is 8", " 8"),
        grown("", "<call>"),
        grown("", "f", tool_calls=[ToolCall(0, "call_1", "f", "{}")]),
        grown("", "<end>", finish_reason="tool_calls"),
    ]
    told = events(*deltas)
    grew = [each for each in told if each["type"] == "response.output_text.delta"]
    assert [[one["token"] for one in each["logprobs"]] for each in grew] == [["It"], [" is", " 8"]]
    entry = {"token": "It", "logprob": -0.5, "bytes": [73, 116]}
    assert grew[0]["logprobs"] == [{**entry, "top_logprobs": [entry]}]
    [done] = [each for each in told if each["type"] == "response.output_text.done"]
    assert done["logprobs"] == [one for each in grew for one in each["logprobs"]]
    assert told[-1]["response"]["output"][1]["content"][0]["logprobs"] == done["logprobs"]
    halves = [TokenLogprob("?", byte, -0.5) for byte in (b"\xc3", b"\xa9")]
    [split] = [
        each
        for each in events(
            grown("", "</think>"), Delta(logprobs=halves[:1]), Delta(text="é", logprobs=halves[1:]), STOP
        )
        if each["type"] == "response.output_text.delta"
    ]
    assert [one["bytes"] for one in split["logprobs"]] == [[0xC3], [0xA9]]
    ends = events(grown("It", "It"), grown("", "<end>", finish_reason="stop"))[-1]["response"]["output"]
    assert [one["token"] for one in ends[0]["content"][0]["logprobs"]] == ["It", "<end>"]


def test_whole_it_is_what_the_stream_ends_with() -> None:
    deltas = [grown("", "a", reasoning="a"), grown("It", "It"), grown("", "<end>", finish_reason="stop")]
    whole = named(json.loads(writer().whole(answers(), [deltas])), {})
    streamed = events(*deltas)[-1]["response"]
    for each in (whole, streamed):
        del each["id"], each["created_at"], each["completed_at"]
    assert whole == streamed
