"""What a router makes of a body before any worker sees it."""

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from rtp_llm.autoscaling.figures import RouterFigures
from rtp_llm.config import load_config
from rtp_llm.directory import Member, StaticMembership
from rtp_llm.errors import (
    ConfigError,
    DeadlineError,
    DeadlineUnreachableError,
    InvalidRequestError,
    OverloadedError,
    PromptTooLongError,
    UnavailableError,
)
from rtp_llm.metrics import readings
from rtp_llm.model import tokenizer
from rtp_llm.request import FinishReason, Request, TokenOutput
from rtp_llm.router.account import open_account
from rtp_llm.router.anthropic_body import MessagesBody
from rtp_llm.router.dispatcher import Dispatcher
from rtp_llm.router.fleet import Fleet
from rtp_llm.router.ingress import build_ingress
from rtp_llm.router.placement import FleetEvent, PlacementQuery, Prediction, Snapshot, StepMeasured, WorkerView
from rtp_llm.router.placement.step_cost import Step
from rtp_llm.router.schemas import BatchChatBody, Body, ChatBody, CompletionBody
from rtp_llm.router.service import FEW_PROMPTS, LARGE_BODY_BYTES, SMALL_BODY_BYTES, Service, TokenizedPrompt
from rtp_llm.router.terms import NO_TERMS, Terms
from rtp_llm.wire.convert import error_of
from rtp_llm.wire.v1 import router_pb2
from tests.model.tokenizer_files import with_bos

MAX_MODEL_LEN = 64


@pytest_asyncio.fixture
async def service() -> AsyncIterator[Service]:
    service = Service(load_config(overrides={"model.max_model_len": MAX_MODEL_LEN}, environ={}), StaticMembership())
    yield service
    await service.close()


def completion(**fields: Any) -> CompletionBody:
    return CompletionBody(**{"prompt": [5, 6], **fields})


def chat(**fields: Any) -> ChatBody:
    return ChatBody(**{"messages": [{"role": "user", "content": "hi"}], **fields})


async def complete(service: Service, body: CompletionBody) -> Sequence[TokenizedPrompt]:
    return service.ask_typed(body).prompts


async def ask_chat(service: Service, body: ChatBody) -> TokenizedPrompt:
    [prompt] = service.ask_typed(body).prompts
    return prompt


async def test_a_text_that_is_too_long_by_its_size_is_refused_before_it_is_tokenized(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(*_: object, **__: object) -> None:
        raise AssertionError("tokenized")

    longest = service.reader.tokenizer.max_token_bytes
    text = "x" * (MAX_MODEL_LEN * longest + 1)
    monkeypatch.setattr(service.reader.tokenizer, "encode", encode)
    says = f"a text of {len(text)} bytes .* {MAX_MODEL_LEN} tokens, .* {longest} bytes"
    with pytest.raises(PromptTooLongError, match=says) as refused:
        await complete(service, completion(prompt=text))
    assert refused.value.param == "prompt"
    with pytest.raises(PromptTooLongError, match="messages: a text of") as refused:
        await ask_chat(service, chat(messages=[{"role": "user", "content": text}]))
    assert refused.value.param == "messages"


async def test_the_event_loop_goes_on_while_a_text_is_tokenized(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()

    def encode(*_: object, **__: object) -> list[int]:
        assert done.wait(10)  # which the event loop sets
        return [5]

    monkeypatch.setattr(service.reader.tokenizer, "encode", encode)
    prompt, messages = {"prompt": "text"}, {"messages": [{"role": "user", "content": "text"}]}
    for kind, body in ((CompletionBody, prompt), (ChatBody, messages)):
        done.clear()
        asyncio.get_running_loop().call_later(0.01, done.set)
        await service.ask(kind, json.dumps(body).encode() + b" " * SMALL_BODY_BYTES, NO_TERMS)


async def test_many_short_conversations_are_rendered_beside_the_event_loop(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def asked(body: Body) -> Any:
        threads.append(threading.current_thread().name)
        raise InvalidRequestError("seen")

    monkeypatch.setattr(service.reader, "asked", asked)
    for number in (FEW_PROMPTS, FEW_PROMPTS + 1):
        with pytest.raises(InvalidRequestError, match="seen"):
            await service.ask(BatchChatBody, json.dumps({"messages": [[]] * number}).encode(), NO_TERMS)
    assert threads[0] == threading.current_thread().name != threads[1]


async def test_a_limited_number_is_read_or_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(load_config(overrides={"router.max_waiting": 3}, environ={}), StaticMembership())
    with service.admission(), service.admission():
        monkeypatch.setattr(Dispatcher, "num_waiting", 1)
        with pytest.raises(OverloadedError, match="3 requests are being read or wait for a worker, the limit is 3"):
            service.admission().__enter__()
        monkeypatch.setattr(Dispatcher, "num_waiting", 0)
        with service.admission():
            pass
    with service.admission(), service.admission(), service.admission():
        pass
    await service.close()


async def test_a_text_is_not_tokenized_far_beyond_the_context(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a token is at least 6 of 18 bytes on average: by its size alone it might fit."""
    encoded: list[int] = []
    ids = service.reader.tokenizer._ids

    def count(text: str, add_special_tokens: bool) -> list[int]:
        encoded.append(len(text))
        return ids(text, add_special_tokens)

    monkeypatch.setattr(service.reader.tokenizer, "_ids", count)
    monkeypatch.setattr(tokenizer, "PIECE_CHARS", 100)
    text = "a b " * (MAX_MODEL_LEN * 4)
    with pytest.raises(PromptTooLongError, match=f"has more than {MAX_MODEL_LEN} tokens"):
        await complete(service, completion(prompt=text))
    assert sum(encoded) < len(text) / 2


async def test_prompts_times_n_are_limited(service: Service) -> None:
    assert len(await complete(service, completion(prompt=[[5]] * 64, n=2))) == 64
    with pytest.raises(InvalidRequestError, match=r"65 prompts times n 2 are 130 answers, .* 128") as refused:
        await complete(service, completion(prompt=[[5]] * 65, n=2))
    assert (refused.value.param, refused.value.http_status) == ("prompt", 400)


@pytest.mark.parametrize(
    ("field", "value"),
    [("stop_token_ids", [5, 2560]), ("allowed_token_ids", [2560, 5]), ("logit_bias", {"5": 1, "2560": 1})],
)
async def test_a_token_outside_of_the_vocabulary_is_named(service: Service, field: str, value: Any) -> None:
    for asked in (complete(service, completion(**{field: value})), ask_chat(service, chat(**{field: value}))):
        with pytest.raises(InvalidRequestError, match=f"{field}: token id 2560") as refused:
            await asked
        assert refused.value.param == field


async def test_more_ending_tokens_than_min_tokens_can_hold_back_are_named(service: Service) -> None:
    await complete(service, completion(min_tokens=2, stop_token_ids=list(range(3, 33))))  # and two EOS ids
    await complete(service, completion(stop_token_ids=list(range(3, 34))))
    with pytest.raises(InvalidRequestError, match=r"stop_token_ids: with min_tokens .* 32, got 33") as refused:
        await complete(service, completion(min_tokens=2, stop_token_ids=list(range(3, 34))))
    assert refused.value.param == "stop_token_ids"


async def test_a_completion_without_max_tokens_gets_what_the_context_leaves_of_the_default(service: Service) -> None:
    for length, limit in ((10, 16), (60, 4)):
        [prompt] = await complete(service, completion(prompt=[5] * length))
        assert prompt.sampling.max_tokens == limit
    with pytest.raises(PromptTooLongError, match="64 prompt tokens and one more for the answer"):
        await complete(service, completion(prompt=[5] * 64))


async def test_a_limit_beyond_what_the_context_leaves_is_named_unless_the_prompt_alone_is_too_long(
    service: Service,
) -> None:
    with pytest.raises(
        PromptTooLongError, match=r"max_tokens: 5 and 60 prompt tokens .* length is 64 tokens, which leaves 4"
    ) as refused:
        await complete(service, completion(prompt=[5] * 60, max_tokens=5))
    assert (refused.value.param, refused.value.value) == ("max_tokens", 5)
    with pytest.raises(PromptTooLongError, match="prompt: 64 prompt tokens and one more") as refused:
        await complete(service, completion(prompt=[5] * 64, max_tokens=5))
    assert (refused.value.param, refused.value.value) == ("prompt", 64)
    for field in ("max_tokens", "max_completion_tokens"):
        with pytest.raises(PromptTooLongError, match=f"^{field}: 64 and") as refused:
            await ask_chat(service, chat(**{field: 64}))
        assert (refused.value.param, refused.value.value) == (field, 64)


async def test_a_chat_that_fills_the_context_is_refused_without_naming_a_max_tokens(service: Service) -> None:
    message = {"role": "user", "content": "1 " * 64}
    with pytest.raises(PromptTooLongError) as refused:
        await ask_chat(service, chat(messages=[message]))
    assert "one more for the answer" in refused.value.message and "None" not in refused.value.message


async def test_an_answer_is_limited_to_what_context_and_pools_leave(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody gave a limit: it is that; somebody gave one: both numbers are named."""
    monkeypatch.setattr(service.fleet, "longest_request", lambda: 40)
    assert service.max_model_len == 40
    asked = await ask_chat(service, chat())
    assert asked.sampling.max_tokens == 40 - asked.num_tokens
    limit = r"the 40 tokens that the workers' KV pools hold \(the model's context is 64\)"
    with pytest.raises(
        PromptTooLongError, match=f"^max_tokens: 50 and 2 prompt tokens exceed {limit}, which leaves 38"
    ):
        await complete(service, completion(max_tokens=50))
    with pytest.raises(PromptTooLongError, match=f"^prompt: 45 prompt tokens and one more .* exceed {limit}"):
        await complete(service, completion(prompt=[5] * 45))
    with pytest.raises(PromptTooLongError, match=rf"^min_tokens: 39 and \d+ prompt tokens exceed {limit}") as refused:
        await ask_chat(service, chat(min_tokens=39))
    assert refused.value.param == "min_tokens"
    monkeypatch.setattr(service.fleet, "longest_request", lambda: 1000)
    assert service.max_model_len == MAX_MODEL_LEN


@pytest.mark.parametrize(
    ("named", "fields", "param"),
    [
        ("prompt", {}, "messages"),
        ("output", {}, "messages"),
        ("", {}, "messages"),
        ("max_tokens", {}, "messages"),
        ("max_tokens", {"max_tokens": 5}, "max_tokens"),
        ("max_tokens", {"max_completion_tokens": 5}, "max_completion_tokens"),
        ("stop_token_ids", {"stop_token_ids": [5]}, "stop_token_ids"),
    ],
)
async def test_what_a_worker_refuses_is_named_as_the_body_has_it(
    service: Service, monkeypatch: pytest.MonkeyPatch, named: str, fields: dict[str, Any], param: str
) -> None:
    """Its prompt is one of messages, and a limit that nobody gave is none of the body's."""

    async def generate(*_: object) -> AsyncIterator[list[TokenOutput]]:
        raise error_of(router_pb2.Failed(type="PromptTooLongError", message="of 9 tokens", param=named))
        yield []

    monkeypatch.setattr(service.dispatcher, "generate", generate)
    prompt = await ask_chat(service, chat(**fields))
    with pytest.raises(PromptTooLongError) as refused:
        await anext(prompt.answer("r", 0))
    assert (refused.value.param, refused.value.code) == (param, "context_length_exceeded")
    assert refused.value.message == f"{param}: of 9 tokens"
    [prompt] = await complete(service, completion())
    with pytest.raises(PromptTooLongError) as refused:
        await anext(prompt.answer("r", 0))
    assert refused.value.param == (named if named == "stop_token_ids" else "prompt")


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "self"])
async def test_reserved_variables_of_chat_templates_are_refused(service: Service, name: str) -> None:
    with pytest.raises(InvalidRequestError, match=name) as refused:
        await ask_chat(service, chat(chat_template_kwargs={name: []}))
    assert refused.value.param == f"chat_template_kwargs.{name}"
    await ask_chat(service, chat(chat_template_kwargs={"enable_thinking": False}))


async def test_tools_reach_the_template_unless_none_is_chosen(service: Service) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    service.reader.context = 4096
    without = (await ask_chat(service, chat())).tokens
    assert (await ask_chat(service, chat(tools=tools, tool_choice="none"))).tokens == without
    offered = (await ask_chat(service, chat(tools=tools))).tokens
    assert len(offered) > len(without)
    assert (await ask_chat(service, chat(tools=tools, tool_choice="auto"))).tokens == offered


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}, 1])
async def test_a_tool_choice_that_would_be_ignored_is_refused(service: Service, choice: object) -> None:
    with pytest.raises(
        InvalidRequestError, match=re.escape(f"tool_choice is not supported, got {choice!r}")
    ) as refused:
        await ask_chat(service, chat(tool_choice=choice))
    assert (refused.value.param, refused.value.value) == ("tool_choice", choice)


async def test_whichever_router_is_asked_shows_what_all_have_counted() -> None:
    """Each under its own label, so that no scrape sees a counter step back."""
    membership = StaticMembership()
    config = load_config(overrides={"worker.token": "secret"}, environ={})
    routers = [Service(config, membership) for _ in range(2)]
    worker = Member(id="decode-1", epoch=1, pool="decode", address="127.0.0.1:1")
    membership.set([worker, *[await each.listen() for each in routers]])
    for each, requests in zip(routers, (3, 5), strict=True):
        each.start()
        for _ in range(requests):
            each.count("completions", 200)
    await asyncio.sleep(0)
    names = [each.fleet.router_id for each in routers]
    for each in routers:
        text = (await each.metrics()).decode()
        assert readings(text, "rtp_llm_requests_total", "router") == dict(zip(names, (3, 5), strict=True))
        assert readings(text, "rtp_llm_requests_total", "model") == {"demo": 5}
        states = readings(text, "rtp_llm_workers", "state")  # routers are no workers
        assert states["connecting"] + states["unreachable"] >= 1 and states["live"] == 0
    await routers[1].close()
    text = (await routers[0].metrics()).decode()
    assert readings(text, "rtp_llm_requests_total", "router") == {names[0]: 3}
    await routers[0].close()


@pytest.mark.parametrize("outcome", ["finished", "failed", "cancelled"])
async def test_an_answer_is_timed_by_how_it_ends(
    service: Service, monkeypatch: pytest.MonkeyPatch, outcome: str
) -> None:
    """A stop string ends one too: the tokens behind it are nobody's."""

    async def generate(*_: object) -> AsyncIterator[list[TokenOutput]]:
        for position, token in enumerate(service.reader.tokenizer.encode("stop it", add_special_tokens=False)):
            yield [TokenOutput(position, token, None, [], FinishReason.NONE, 0)]
        raise UnavailableError("gone")

    monkeypatch.setattr(service.dispatcher, "generate", generate)
    stop = ["o"] if outcome == "finished" else None
    [prompt] = await complete(service, completion(stop=stop, max_tokens=9))
    answer = prompt.answer("r", 0)
    if outcome == "failed":
        with pytest.raises(UnavailableError):
            [delta async for delta in answer]
    elif outcome == "cancelled":
        await anext(answer)
        await answer.aclose()
    else:
        assert [delta.finish_reason async for delta in answer][-1] == "stop"
    text = service.own_metrics().decode()
    assert readings(text, "rtp_llm_request_duration_seconds_count", "outcome") == {outcome: 1}


async def test_an_answer_that_nobody_limited_ends_at_the_deadline(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a stop string might have begun with is part of it. An answer of a given length that isn't whole is none."""
    spoken = service.reader.tokenizer.encode("It goes on", add_special_tokens=False)

    async def generate(*_: object) -> AsyncIterator[list[TokenOutput]]:
        for position, token in enumerate(spoken):
            yield [TokenOutput(position, token, None, [], FinishReason.NONE, 0)]
        raise DeadlineError("the answer is not whole after 600 s")

    monkeypatch.setattr(service.dispatcher, "generate", generate)
    asked = await ask_chat(service, chat(stop=["on and on"]))
    deltas = [delta async for delta in asked.answer("r", 0)]
    assert "".join(delta.text for delta in deltas) == "It goes on"
    assert [delta.finish_reason for delta in deltas] == [None] * len(spoken) + ["length"]
    with pytest.raises(DeadlineError):
        [delta async for delta in (await ask_chat(service, chat(max_tokens=30))).answer("r", 0)]
    spoken.clear()
    with pytest.raises(DeadlineError):
        [delta async for delta in (await ask_chat(service, chat())).answer("r", 0)]
    counted = readings(service.own_metrics().decode(), "rtp_llm_request_duration_seconds_count", "outcome")
    assert counted == {"finished": 1, "failed": 2}


async def test_a_prompt_begins_with_the_tokenizers_bos_as_the_body_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A completion's does, a chat's doesn't, which its template has written out, unless add_special_tokens says so."""
    config = load_config(overrides={"model.path": str(with_bos(tmp_path / "model"))}, environ={})
    service = Service(config, StaticMembership())
    asked: list[Request] = []

    async def generate(request: Request, *_: object) -> AsyncIterator[list[TokenOutput]]:
        asked.append(request)
        yield [TokenOutput(0, 5, None, [], FinishReason.LENGTH, 0)]

    monkeypatch.setattr(service.dispatcher, "generate", generate)
    transport = httpx.ASGITransport(app=build_ingress(lambda: service))
    written = {"prompt": "<|endoftext|>hi"}, {"messages": [{"role": "user", "content": "hi"}]}
    async with httpx.AsyncClient(transport=transport, base_url="http://router/v1") as http:
        for path, body, default in (("completions", written[0], True), ("chat/completions", written[1], False)):
            prompts = {}
            for said in (True, False, None):
                fields = {} if said is None else {"add_special_tokens": said}
                answer = await http.post(f"/{path}", json={**body, **fields, "max_tokens": 1})
                assert answer.status_code == 200, answer.text
                prompts[said] = list(asked[-1].prompt)
            assert prompts[True] == [0, *prompts[False]] and prompts[False][:2] != [0, 0]
            assert prompts[None] == prompts[default]
    await service.close()


async def test_a_refusal_says_a_field_as_its_endpoint_calls_it(service: Service) -> None:
    asked = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "stop_sequences": ["stop", ""]}
    with pytest.raises(InvalidRequestError) as refused:
        await service.ask(MessagesBody, json.dumps(asked).encode(), NO_TERMS)
    assert (refused.value.param, refused.value.message) == (
        "stop_sequences",
        "stop_sequences must hold non-empty strings, got ''",
    )


# --- Deadlines


class Predicts:
    """As many seconds as prompt tokens; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def predicted(self, snapshot: Snapshot, query: PlacementQuery) -> Prediction:
        self.asked.append(query.prompt_tokens)
        return Prediction(query.prompt_tokens, 0.0)

    def observe(self, events: Sequence[FleetEvent]) -> None: ...

    def choose(self, snapshot: Snapshot, query: PlacementQuery) -> None: ...


def predicting(monkeypatch: pytest.MonkeyPatch, **settings: object) -> tuple[Service, Predicts]:
    policy = Predicts()
    monkeypatch.setattr("rtp_llm.router.service.policy_of", lambda config: policy)
    return Service(load_config(overrides=settings, environ={}), StaticMembership()), policy


def body_of(prompt: object, **fields: object) -> bytes:
    return json.dumps({"prompt": prompt, **fields}).encode()


async def test_what_is_late_by_the_queue_alone_is_refused_before_it_is_tokenized(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service, policy = predicting(monkeypatch)

    def asked(*_: object) -> None:
        raise AssertionError("tokenized")

    monkeypatch.setattr(service.reader, "asked", asked)
    for terms, fields in ((Terms(ttft_timeout_s=0.9), {}), (NO_TERMS, {"ttft_timeout_ms": 900})):
        with pytest.raises(DeadlineUnreachableError) as refused:
            await service.ask(CompletionBody, body_of("some words " * 30, **fields), terms)
        assert 0 < refused.value.retry_after_s < 1  # type: ignore[operator]
    assert policy.asked == [1, 1]  # all but the last token may be in a cache
    counted = readings(service.own_metrics().decode(), "rtp_llm_tenant_refusals_total", "cause")
    assert counted == {"deadline": 2}
    await service.close()


async def test_a_large_body_is_judged_by_its_headers_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    service, _ = predicting(monkeypatch)
    body = body_of("word " * LARGE_BODY_BYTES, ttft_timeout_ms=900)
    with pytest.raises(DeadlineUnreachableError):
        await service.ask(CompletionBody, body, Terms(timeout_s=0.9))
    assert service.bodies.pid is None  # it would have begun with the first
    await service.close()


async def test_before_it_is_tokenized_a_prompt_counts_as_what_it_has_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    service, policy = predicting(
        monkeypatch,
        **{"engine.enable_prefix_caching": False, "router.request_timeout_s": 1e6, "router.ttft_timeout_s": 1e6},
    )
    longest = service.reader.tokenizer.max_token_bytes
    text = "some words of a text " * 40
    tokens = len(service.reader.tokenizer.encode(text))
    messages = [{"role": "system", "content": text * 9}, {"role": "user", "content": f"  {text.strip()} "}]
    for kind, asked in (
        (CompletionBody, {"prompt": [text, "a"]}),
        (CompletionBody, {"prompt": [5] * 40}),
        (ChatBody, {"messages": messages, "max_tokens": 5}),
    ):
        await service.ask(kind, json.dumps(asked).encode(), NO_TERMS)
    assert policy.asked[:2] == [len(text) // longest, 1] and policy.asked[2:4] == [tokens, 1]
    assert policy.asked[4:6] == [40, 40]
    assert policy.asked[6] == len(text.strip()) // longest <= tokens < policy.asked[7]
    await service.close()


async def test_a_prompt_that_is_late_by_its_own_length_is_refused_when_it_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service, _ = predicting(monkeypatch)
    await service.ask(CompletionBody, body_of([5] * 30, timeout=100), NO_TERMS)
    with pytest.raises(DeadlineUnreachableError):
        await service.ask(CompletionBody, body_of([5] * 130, timeout=100), NO_TERMS)
    with pytest.raises(DeadlineUnreachableError):
        await service.ask(CompletionBody, body_of([5] * 30, timeout=100), Terms(timeout_s=20))
    await service.close()


async def test_an_answer_is_made_on_the_terms_of_headers_and_body(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = await service.ask(CompletionBody, body_of([5], ttft_timeout=9), Terms(timeout_s=7))
    [prompt] = question.prompts
    assert isinstance(prompt, TokenizedPrompt) and prompt.terms == Terms(timeout_s=7, ttft_timeout_s=9)
    given: list[object] = []

    async def generate(
        request: Request, number: int, account: object, terms: Terms, hashes: object
    ) -> AsyncIterator[list[TokenOutput]]:
        given.append((terms, hashes))
        yield [TokenOutput(0, 5, None, [], FinishReason.LENGTH, 0)]

    monkeypatch.setattr(service.dispatcher, "generate", generate)
    assert [delta.finish_reason async for delta in prompt.answer("r", 0)] == ["length"]
    assert given == [(prompt.terms, prompt.hashes)]


async def test_requests_that_are_too_many_are_counted_as_refused_by_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(load_config(overrides={"router.max_waiting": 1}, environ={}), StaticMembership())
    open_account().tenant = "alice"
    with service.admission(), pytest.raises(OverloadedError), service.admission():
        pass
    text = service.own_metrics().decode()
    assert readings(text, "rtp_llm_tenant_refusals_total", "tenant") == {"alice": 1}
    assert readings(text, "rtp_llm_tenant_refusals_total", "cause") == {"queue": 1}
    await service.close()


@pytest.mark.parametrize("keys", [None, "bob b-key"])
async def test_a_weight_of_a_tenant_that_has_no_key_is_refused(tmp_path: Path, keys: str | None) -> None:
    (tmp_path / "keys").write_text(keys or "")
    settings: dict[str, object] = {"router.tenant_weights": {"alice": 2}}
    if keys is not None:
        settings["http.api_keys_file"] = str(tmp_path / "keys")
    where = re.escape(str(tmp_path / "keys") if keys else "http.api_keys_file, which is not set")
    with pytest.raises(ConfigError, match=rf"router.tenant_weights: 'alice' is the name of no key in {where}"):
        Service(load_config(overrides=settings, environ={}), StaticMembership())
    (tmp_path / "keys").write_text("alice a-key")
    settings["http.api_keys_file"] = str(tmp_path / "keys")
    await Service(load_config(overrides=settings, environ={}), StaticMembership()).close()


async def test_a_router_records_what_waits_and_what_steps_take_where_pools_are_autoscaled(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert service.autoscaling_figures() == RouterFigures() and service.least_workers == 1
    scaled = Service(
        load_config(
            overrides={f"{pool}.autoscaling": {"min": 0, "max": 2} for pool in ("prefill", "decode")},
            environ={},
        ),
        StaticMembership(),
    )
    assert scaled.least_workers == 0
    [prompt] = scaled.ask_typed(completion(prompt=[5, 6, 7])).prompts
    waits = asyncio.ensure_future(anext(prompt.answer("r", 0)))
    await asyncio.sleep(0)
    monkeypatch.setattr(Fleet, "snapshot", {"p": WorkerView(id="p", epoch=1, pool="prefill")})
    scaled.dispatcher.observe(StepMeasured("p", Step.of_prompt(512), 0.128))
    figures = scaled.autoscaling_figures()
    assert (figures.waiting, figures.waiting_tokens) == (1, 3)
    assert 0 < figures.prefill_token_s < 0.001 and figures.decode_token_s == 0
    waits.cancel()
    await scaled.close()


async def test_settings_are_taken_over_whole_or_not_at_all() -> None:
    service = Service(load_config(overrides={"router.max_waiting": 5}, environ={}), StaticMembership())
    service.reconfigure({"max_waiting": 1, "ping_s": 2, "retry_burst": 3})
    assert service.ping_s == 2
    with service.admission(), pytest.raises(OverloadedError, match="the limit is 1"):
        service.admission().__enter__()
    for wrong in ({"ping_s": 4, "policy": "cost"}, {"ping_s": 4, "tenant_weights": {"nobody": 1}}):
        with pytest.raises(ConfigError):
            service.reconfigure(wrong)
        assert service.ping_s == 2
    service.reconfigure({"ping_s": 4})
    assert service.ping_s == 4 and service.config.router.max_waiting == 5
    await service.close()


async def test_a_priority_goes_with_the_request_and_may_be_as_low_as_the_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = Service(load_config(overrides={"router.min_priority": -2}, environ={}), StaticMembership())
    asked: list[Request] = []

    async def generate(request: Request, *_: object) -> AsyncIterator[list[TokenOutput]]:
        asked.append(request)
        yield [TokenOutput(0, 5, None, [], FinishReason.LENGTH, 0)]

    monkeypatch.setattr(service.dispatcher, "generate", generate)
    question = await service.ask(CompletionBody, body_of([5], priority=-2), NO_TERMS)
    [prompt] = question.prompts
    assert [delta.finish_reason async for delta in prompt.answer("r", 0)] == ["length"]
    assert [request.priority for request in asked] == [-2]
    with pytest.raises(InvalidRequestError, match="priority must be at least -2 here, got -3") as refused:
        await service.ask(CompletionBody, body_of([5], priority=-3), NO_TERMS)
    assert refused.value.param == "priority"
    await service.close()
