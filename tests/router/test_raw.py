"""RTP-LLM's raw requests: what its clients send and read, over a router whose answers are spoken by a script."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from rtp_llm.errors import (
    DeadlineError,
    InvalidRequestError,
    OverloadedError,
    PromptTooLongError,
    RtpLlmError,
    SuspectError,
    UnavailableError,
    UnsupportedFieldError,
    WorkerLostError,
)
from rtp_llm.model.answer_text import Delta
from rtp_llm.router import raw_writer
from rtp_llm.router.account import open_account
from rtp_llm.router.answers import Answers, Question
from rtp_llm.router.raw_body import CONFIGS, REFUSED, BatchInferBody, NoPromptError, RawBody, RawRequest
from rtp_llm.router.raw_shown import RawShown
from rtp_llm.router.raw_writer import LEAST_GROWTH, REPEATED_CHARS, RawWriter, error_body
from rtp_llm.router.schemas import parse_body
from rtp_llm.router.service import LARGE_BODY_BYTES
from rtp_llm.sampling_params import SamplingParams
from tests.router.spoken import CACHED, Spoken

pytestmark = pytest.mark.asyncio(loop_scope="module")

DOCS = Path(__file__).resolve().parents[2] / "docs" / "http-api.md"
# RTP-LLM's generate_config, field by field.
GENERATE_CONFIG = """
    max_new_tokens max_input_tokens min_new_tokens max_thinking_tokens in_think_mode thinking_mode begin_think_token_ids
    end_think_token_ids num_beams variable_num_beams do_sample num_return_sequences top_k top_p temperature
    repetition_penalty presence_penalty frequency_penalty no_repeat_ngram_size random_seed top_p_decay top_p_min
    top_p_reset_ids stop_words_str stop_words_list bad_words_list print_stop_words ignore_eos skip_special_tokens
    json_format chat_template_kwargs eos_token_id pad_token_id bos_token_id using_hf_sampling timeout_ms ttft_timeout_ms
    traffic_reject_priority qos_priority chat_id trace_id global_request_id unique_key task_id adapter_name
    request_format response_format json_schema regex ebnf structural_tag combo_token_size banned_combo_token_ids
    auto_parse_banned_combo enable_cross_sequence_ban cross_seq_diverge_start_combo calculate_loss return_logits
    logits_index return_prompt_logits prompt_logits_top_k prompt_logits_start prompt_logits_end return_target_logprob
    return_hidden_states return_all_hidden_states hidden_states_cut_dim normalized_hidden_states return_input_ids
    return_output_ids return_incremental return_cum_log_probs return_softmax_probs return_all_probs select_tokens_str
    select_tokens_id md5_value custom_prop out_prefix sp_advice_prompt sp_advice_prompt_token_ids sp_edit
    force_disable_sp_run force_sp_accept aux_info can_use_pd_separation role_addrs gen_timeline profile_step
    profile_trace_name is_streaming reuse_cache enable_device_cache enable_memory_cache enable_remote_cache
    group_timeout resized_shape max_pixels min_pixels fps min_frames max_frames crop_positions mm_timeout_ms
    add_vision_id tool_call_message_extract_strategy
"""
# Of them, those that change no answer here, or only with another field that is refused.
NOTHING = """
    max_input_tokens max_thinking_tokens begin_think_token_ids end_think_token_ids pad_token_id bos_token_id
    traffic_reject_priority qos_priority trace_id global_request_id unique_key prompt_logits_top_k prompt_logits_start
    prompt_logits_end return_target_logprob md5_value custom_prop sp_advice_prompt sp_advice_prompt_token_ids
    force_disable_sp_run can_use_pd_separation role_addrs gen_timeline profile_step profile_trace_name is_streaming
    enable_memory_cache enable_remote_cache group_timeout resized_shape max_pixels min_pixels fps min_frames max_frames
    crop_positions mm_timeout_ms add_vision_id tool_call_message_extract_strategy
"""
TIMES = {"cost_time", "wait_time", "first_token_cost_time"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def spoken() -> AsyncIterator[Spoken]:
    async with Spoken.running(**{"model.max_model_len": 64, "router.max_choices": 4}) as spoken:
        assert isinstance(spoken, Spoken)
        yield spoken


@pytest.fixture
def router(spoken: Spoken) -> Spoken:
    spoken.anew()
    return spoken


@pytest.fixture
def http(router: Spoken) -> httpx.AsyncClient:
    return router.http


def raw(**fields: Any) -> RawBody:
    return parse_body(RawBody, {"prompt": "hi", **fields})


def sampling(**fields: Any) -> SamplingParams:
    return raw(**fields).sampling({})


def events(text: str, head: str = "data:") -> list[Any]:
    """Without the last one, which says that there are no more."""
    parts = text.split("\r\n\r\n")
    assert parts.pop() == ""
    if head == "data:":
        assert parts.pop() == "data:[done]"
    assert all(part.startswith(head) for part in parts)
    return [json.loads(part.removeprefix(head)) for part in parts]


# --- The answer


async def test_a_text_is_answered_in_rtp_llms_shape(http: httpx.AsyncClient, router: Spoken) -> None:
    answer = await http.post("/", json={"prompt": "Hello there", "generate_config": {"max_new_tokens": 8}})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    aux = body.pop("aux_info")
    assert body == {"response": "said 0", "finished": True}
    count = len(router.service.reader.tokenizer.encode("said 0", add_special_tokens=False))
    times = {name: aux.pop(name) for name in TIMES}
    assert times["cost_time"] >= times["first_token_cost_time"] > times["wait_time"] >= 0
    assert aux == {
        "iter_count": count,
        "input_len": len(router.asked[0].prompt),
        "prefix_len": 0,
        "output_len": count,
        "step_output_len": count,
        "pd_sep": True,
        "reuse_len": CACHED,
        "local_reuse_len": CACHED,
        "remote_reuse_len": 0,
        "memory_reuse_len": 0,
        "prefill_total_reuse_len": CACHED,
        "prefill_local_reuse_len": CACHED,
        "prefill_remote_reuse_len": 0,
        "prefill_memory_reuse_len": 0,
    }


async def test_sequences_and_batches_come_as_lists(http: httpx.AsyncClient, router: Spoken) -> None:
    router.speak = lambda prompt, choice: f"{prompt} {choice}"
    quiet = {"aux_info": False}
    one = await http.post("/", json={"prompt": "a", "generate_config": {"num_return_sequences": 1, **quiet}})
    assert one.json() == {"response": ["a 0"], "finished": True, "aux_info": []}
    two = await http.post("/", json={"prompt": "a", "num_return_sequences": 2})
    assert two.json()["response"] == ["a 0", "a 1"] and len(two.json()["aux_info"]) == 2
    for path in ("/", "/batch_infer"):
        batch = await http.post(path, json={"prompt_batch": ["a", "b"], "generate_config": quiet})
        assert batch.json() == {
            "response_batch": [{"response": f"{text} 0", "finished": True, "aux_info": {}} for text in "ab"]
        }
    both = await http.post("/batch_infer", json={"prompt_batch": ["a", "b"], "num_return_sequences": 2, **quiet})
    assert [each["response"] for each in both.json()["response_batch"]] == [["a 0", "a 1"], ["b 0", "b 1"]]


async def test_token_ids_are_returned_where_they_are_asked_for(http: httpx.AsyncClient, router: Spoken) -> None:
    asked = {"prompt": "a", "generate_config": {"return_output_ids": True}, "output_input_ids": True}
    body = (await http.post("/", json=asked)).json()
    tokenizer = router.service.reader.tokenizer
    assert body["input_ids"] == [list(router.asked[0].prompt)] == [tokenizer.encode("a")]
    assert body["output_ids"] == [tokenizer.encode("said 0", add_special_tokens=False)]


async def test_a_stream_repeats_the_answer_unless_it_shall_be_incremental(http: httpx.AsyncClient) -> None:
    whole = events((await http.post("/", json={"prompt": "a", "yield_generator": True})).text)
    texts = [each["response"] for each in whole]
    assert len(texts) > 2 and texts[-1] == "said 0"
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert [each["finished"] for each in whole] == [False] * (len(texts) - 1) + [True]
    assert [each["aux_info"]["output_len"] for each in whole] == list(range(1, len(texts) + 1))
    assert {each["aux_info"]["step_output_len"] for each in whole} == {1}
    config = {"yield_generator": True, "return_incremental": True, "return_output_ids": True}
    pieces = events((await http.post("/", json={"prompt": "a", "generate_config": config})).text)
    assert "".join(each["response"] for each in pieces) == "said 0" and len(pieces) == len(whole)
    assert all(len(each["output_ids"][0]) == 1 for each in pieces)


async def test_a_stream_that_is_asked_for_as_openai_does_has_no_event_for_its_end(http: httpx.AsyncClient) -> None:
    answer = await http.post("/", json={"prompt": "a", "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert events(answer.text, "data: ")[-1]["response"] == "said 0"


async def test_each_event_of_several_answers_has_all_of_them(http: httpx.AsyncClient, router: Spoken) -> None:
    router.speak = lambda prompt, choice: "a longer answer than that" if prompt == "a" else "said"
    asked = {"prompt_batch": ["a", "b"], "yield_generator": True}
    seen = events((await http.post("/", json=asked)).text)
    assert all(len(each["response_batch"]) == 2 for each in seen)
    assert [each["response"] for each in seen[-1]["response_batch"]] == ["a longer answer than that", "said"]
    assert [each["finished"] for each in seen[-1]["response_batch"]] == [True, True]
    asked |= {"generate_config": {"return_incremental": True}}
    seen = events((await http.post("/", json=asked)).text)
    said = ["".join(each["response_batch"][number]["response"] for each in seen) for number in (0, 1)]
    assert said == ["a longer answer than that", "said"]


class Prompt:
    """One of two answers that no tokens are behind."""

    number, num_tokens, num_choices, logprobs, token_ids = 0, 1, 2, False, ()


def writer(**wanted: Any) -> tuple[RawWriter, Answers]:
    """Of two answers; REQUIRES: an event loop."""
    shown = RawShown(sequences=True, aux_info=False, **wanted)
    prompts: Any = [Prompt()]
    account = open_account()
    for choice in range(2):
        account.answer(0, choice)
    question = Question(prompts=prompts, stream=True, include_usage=False, raw=shown)
    return RawWriter("demo", question), Answers("r", prompts)


async def test_an_event_of_several_answers_waits_for_all_but_no_longer_than_one_token_of_one() -> None:
    writing, answers = writer()

    def said(index: int, text: str, finish: str | None = None) -> list[Any]:
        made = writing.events_of(answers, index, Delta(text=text, num_tokens=1, finish_reason=finish))
        return [json.loads(each.removeprefix(b"data:"))["response"] for each in made]

    assert said(0, "a") == []
    assert said(1, "b") == [["a", "b"]]
    assert said(0, "a") == []
    assert said(0, "a") == [["aa", "b"]]
    assert said(0, "a", "stop") == [["aaa", "b"], ["aaaa", "b"]]  # its end is shown at once
    assert said(1, "b") == [["aaaa", "bb"]]  # nobody else is waited for


async def test_a_long_answer_is_not_repeated_at_each_of_its_tokens() -> None:
    """What is sent is a multiple of the answer, not its square."""
    for incremental in (False, True):
        writing, answers = writer(incremental=incremental)
        piece, sent, steps = "x" * 256, [], 2048
        for step in range(steps):
            for index in (0, 1):
                finish = "stop" if step + 1 == steps else None
                sent += [*writing.events_of(answers, index, Delta(text=piece, num_tokens=1, finish_reason=finish))]
        size, total = 2 * steps * len(piece), sum(map(len, sent))
        at_each_step = REPEATED_CHARS // len(piece)  # events, until it is so long
        assert total < (2 * size if incremental else size / LEAST_GROWTH + at_each_step * REPEATED_CHARS)
        assert incremental or json.loads(sent[-1].removeprefix(b"data:"))["response"] == [piece * steps] * 2


# --- What is asked


async def test_every_field_of_generate_config_is_honoured_refused_or_changes_nothing() -> None:
    taken = RawRequest.model_fields.keys() | REFUSED.keys()
    nothing = set(NOTHING.split())
    assert set(GENERATE_CONFIG.split()) - taken == nothing and not taken & nothing
    page = DOCS.read_text()
    names = {*taken, *nothing, *CONFIGS}
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []


@pytest.mark.parametrize("where", ["beside", *CONFIGS])
async def test_a_field_that_is_not_computed_is_refused_by_name_unless_it_asks_for_nothing(where: str) -> None:
    def asked(name: str, value: Any) -> RawBody:
        return raw(**({name: value} if where == "beside" else {where: {name: value}}))

    for name, neutral in REFUSED.items():
        for value in (None, *neutral):
            asked(name, value)
        for value in ("something", {"a": 1}, [5], 7):
            with pytest.raises(UnsupportedFieldError, match=name) as refused:
                asked(name, value)
            assert refused.value.param == name


async def test_fields_reach_sampling_under_their_names_of_here() -> None:
    config = {
        "max_new_tokens": 7,
        "min_new_tokens": 2,
        "top_k": 3,
        "top_p": 0.5,
        "temperature": 0.7,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "random_seed": 9,
        "stop_words_str": ["a", "b"],
        "stop_words_list": [[5], [6.0]],
        "print_stop_words": True,
        "ignore_eos": True,
        "num_return_sequences": 3,
    }
    for made in (sampling(generate_config=config), sampling(generation_config=config), sampling(**config)):
        assert made == SamplingParams(
            max_tokens=7,
            min_tokens=2,
            top_k=3,
            top_p=0.5,
            temperature=0.7,
            repetition_penalty=1.1,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            seed=9,
            stop=["a", "b"],
            stop_token_ids=[5, 6],
            include_stop_str_in_output=True,
            ignore_eos=True,
            n=3,
            skip_special_tokens=False,
        )
    assert sampling(gen_length=4).max_tokens == 4 and sampling(gen_length=4, max_new_tokens=5).max_tokens == 5
    assert sampling(do_sample=False, temperature=0.7).temperature == 0.0
    assert sampling(do_sample=True, temperature=0.7).temperature == 0.7
    assert sampling(num_return_sequences=0).n == 1
    assert sampling(skip_special_tokens=True).skip_special_tokens
    assert (
        raw(chat_id="mine", timeout_ms=500, priority=2).terms()
        == raw(generate_config={"chat_id": "mine", "timeout_ms": 500, "priority": 2}).terms()
    )
    assert raw(chat_id="mine").terms().session == "mine" and raw(ttft_timeout_ms=500).terms().ttft_timeout_s == 0.5


async def test_what_stands_beside_generate_config_counts_before_what_is_in_it() -> None:
    assert sampling(top_k=3, generate_config={"top_k": 4}).top_k == 3
    assert sampling(top_k=None, generate_config={"top_k": 4}).top_k == 4
    assert sampling(generate_config={"top_k": 4}, generation_config={"top_k": 5, "top_p": 0.5}).top_k == 4


async def test_who_wants_no_cached_tokens_gets_a_salt_of_its_own() -> None:
    salts = {raw(**{name: False}).cache_salt for name in ("reuse_cache", "enable_device_cache") for _ in range(2)}
    assert len(salts) == 4 and None not in salts
    assert raw(reuse_cache=True).cache_salt is None and raw(cache_salt="mine").cache_salt == "mine"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": "many"}, "max_new_tokens"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens"),
        ({"num_return_sequences": 1000}, "num_return_sequences"),
        ({"num_return_sequences": -1}, "num_return_sequences"),
        ({"num_return_sequences": 5}, "num_return_sequences"),  # more than router.max_choices
        ({"top_k": [5]}, "top_k"),
        ({"temperature": -1}, "temperature"),
        ({"stop_words_str": [""]}, "stop_words_str"),
        ({"stop_words_str": "x"}, "stop_words_str"),
        ({"stop_words_list": [[99999]]}, "stop_words_list"),
        ({"stop_words_list": [5]}, "stop_words_list[0]"),
        ({"stop_words_list": [[]]}, "stop_words_list[0]"),
        ({"stop_words_list": [["x"]]}, "stop_words_list[0]"),
        ({"stop_words_list": [[True]]}, "stop_words_list[0]"),
        ({"stop_words_list": [[5], [5, 6]]}, "stop_words_list[1]"),
        ({"random_seed": 1.5}, "random_seed"),
        ({"timeout_ms": 0}, "timeout_ms"),
        ({"generate_config": []}, "generate_config"),
        ({"generate_config": "x"}, "generate_config"),
        ({"aux_info": 1}, "aux_info"),
        ({"yield_generator": "yes"}, "yield_generator"),
        ({"return_incremental": True}, "return_incremental"),
        ({"text": "too"}, "text"),
        ({"request_format": "chat"}, "request_format"),
        ({"prompt": ["a", "b"]}, "prompt_batch"),
        ({"prompt": [5, 6]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x " * 100}, "prompt"),
        ({"prompt": "[", "request_format": "chatapi"}, "prompt"),
        ({"prompt": "[" * 100000, "request_format": "chatapi"}, "prompt"),
        ({"prompt": [{"role": "user"}]}, "prompt[0].content"),
        ({"prompt": None, "messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"prompt": None, "prompt_batch": ["a", 5]}, "prompt_batch[1]"),
        ({"prompt": None, "prompt_batch": "a"}, "prompt_batch"),
        ({"prompt": None, "prompt_batch": ["a"] * 5}, "prompt"),
        ({"prompt": None, "prompt_batch": [[{"role": "user", "content": "x"}], [{}]]}, "prompt_batch[1][0].role"),
        ({"prompt": None}, "prompt"),
    ],
)
async def test_a_bad_field_is_named_as_its_client_calls_it(
    http: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    answer = await http.post("/", json={"prompt": "hi", **fields})
    assert answer.status_code == 400, answer.text
    assert param in answer.json()["message"]
    assert set(answer.json()) == {"error_code", "error_code_str", "message"}


async def test_a_large_body_is_read_alike(http: httpx.AsyncClient, router: Spoken) -> None:
    """In a process of its own."""
    large: dict[str, Any] = {"more": "x" * LARGE_BODY_BYTES}
    for path, asked in (
        ("/", {"prompt": "a", "generate_config": {"return_output_ids": True, "max_new_tokens": 32000}}),
        ("/", {"messages": [{"role": "user", "content": "a"}], "num_return_sequences": 2, "aux_info": False}),
        ("/batch_infer", {"prompt_batch": ["a", "b"], "generate_config": {"aux_info": False}}),
    ):
        answers = [(await http.post(path, json={**asked, **more})).json() for more in ({}, large)]
        for each in answers:
            each["aux_info"] = bool(each.get("aux_info"))
        assert answers[0] == answers[1]
    for path, refused, code in (
        ("/", {"generate_config": {"num_beams": 2}}, 515),
        ("/", {"prompt": "a", "max_new_tokens": 0}, 507),
        ("/batch_infer", {"prompt": "a"}, 509),
    ):
        errors = [(await http.post(path, json={**refused, **more})).json() for more in ({}, large)]
        assert errors[0] == errors[1] and errors[0]["error_code"] == code


async def test_conversations_are_rendered_as_a_chats(http: httpx.AsyncClient, router: Spoken) -> None:
    messages = [{"role": "user", "content": "hi"}]
    rendered = (await http.post("/v1/chat/render", json={"messages": messages})).json()
    for asked in (
        {"messages": messages},
        {"prompt": messages},
        {"prompt": json.dumps(messages), "generate_config": {"request_format": "chatapi"}},
        {"prompt_batch": messages},
        {"prompt_batch": [messages]},
    ):
        answer = await http.post("/", json=asked)
        assert answer.status_code == 200, answer.text
        assert list(router.asked[-1].prompt) == rendered["prompt_token_ids"]
    closed = {"enable_thinking": False}
    rendered = (await http.post("/v1/chat/render", json={"messages": messages, **closed})).json()
    await http.post("/", json={"messages": messages, "generate_config": {"chat_template_kwargs": closed}})
    assert list(router.asked[-1].prompt) == rendered["prompt_token_ids"]


async def test_what_the_model_thinks_is_part_of_the_response(http: httpx.AsyncClient, router: Spoken) -> None:
    router.speak = lambda *_: "<think>\nso\n</think>\n\nyes"
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    assert (await http.post("/", json=chat)).json()["response"] == "<think>\nso\n</think>\n\nyes"
    assert (await http.post("/v1/chat/completions", json=chat)).json()["choices"][0]["message"]["content"] == "yes"


async def test_more_new_tokens_than_the_context_leaves_are_what_it_leaves(
    http: httpx.AsyncClient, router: Spoken
) -> None:
    answer = await http.post("/", json={"prompt": "hi", "generate_config": {"max_new_tokens": 32000}})
    assert answer.status_code == 200
    assert router.asked[0].sampling.max_tokens == 64 - len(router.asked[0].prompt)


async def test_batch_infer_takes_prompt_batch_whole() -> None:
    with pytest.raises(NoPromptError, match="prompt_batch is required"):
        parse_body(BatchInferBody, {"prompt": "hi"})
    for name in ("yield_generator", "stream"):
        with pytest.raises(UnsupportedFieldError, match="yield_generator is not supported here"):
            parse_body(BatchInferBody, {"prompt_batch": ["hi"], name: True})


# --- Errors


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidRequestError("wrong", param="x"), 400, "507_ERROR_INPUT_FORMAT_ERROR"),
        (NoPromptError("none"), 400, "509_NO_PROMPT_ERROR"),
        (PromptTooLongError("long"), 400, "511_LONG_PROMPT_ERROR"),
        (UnsupportedFieldError("beams"), 400, "515_UNSUPPORTED_OPERATION"),
        (OverloadedError("full"), 429, "409_CONCURRENCY_LIMIT_ERROR"),
        (UnavailableError("nobody"), 503, "8400_MASTER_NO_AVAILABLE_WORKER"),
        (DeadlineError("late"), 504, "603_GENERATE_TIMEOUT"),
        (WorkerLostError("lost"), 500, "606_EXECUTION_EXCEPTION"),
        (SuspectError("lost"), 500, "606_EXECUTION_EXCEPTION"),
        (RtpLlmError("odd"), 500, "514_UNKNOWN_ERROR"),
        (LookupError("secret"), 500, "514_UNKNOWN_ERROR"),
    ],
)
async def test_errors_have_rtp_llms_codes_and_an_honest_status(
    http: httpx.AsyncClient, router: Spoken, error: Exception, status: int, code: str
) -> None:
    message = "internal error" if isinstance(error, LookupError) else str(error)
    expected = {"error_code": int(code.partition("_")[0]), "error_code_str": code, "message": message}
    assert error_body(error) == (status, expected)
    if not isinstance(error, InvalidRequestError):  # which is said in terms of the body
        router.error = error
        answer = await http.post("/", json={"prompt": "a", "yield_generator": True})
        assert (answer.status_code, answer.json()) == (status, expected)
        assert ("retry-after" in answer.headers) == (status in (429, 503))


async def test_an_error_in_a_stream_is_its_last_event() -> None:
    writing, _ = writer()
    [last] = writing.failed(WorkerLostError("lost"))
    assert last.startswith(b'data:{"error_code":606,') and last.endswith(b"\r\n\r\n")


async def test_each_endpoint_counts_under_its_own_name() -> None:
    assert [form.endpoint for form in (raw_writer.RAW, raw_writer.BATCH_INFER)] == ["raw", "batch_infer"]
