"""Prompts of which truncate_prompt_tokens keeps an end, before any worker sees them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from rtp_llm.config import load_config
from rtp_llm.directory import StaticMembership
from rtp_llm.errors import InvalidRequestError, PromptTooLongError
from rtp_llm.router.reading import MAX_TRUNCATED_BYTES
from rtp_llm.router.schemas import Body, ChatBody, CompletionBody, parse_body
from rtp_llm.router.service import Service
from rtp_llm.router.token_routes import TOKEN_ROUTES

CONTEXT = 64
LONG = list(range(5, 105))
CHAT = {"messages": [{"role": "user", "content": "one two three " * 200}]}


@pytest_asyncio.fixture
async def service() -> AsyncIterator[Service]:
    service = Service(load_config(overrides={"model.max_model_len": CONTEXT}, environ={}), StaticMembership())
    yield service
    await service.close()


def kept(service: Service, body: Body) -> list[int]:
    [prompt] = service.ask_typed(body).prompts
    return list(prompt.tokens)


def completion(**fields: Any) -> CompletionBody:
    return CompletionBody(**{"prompt": LONG, **fields})


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"truncate_prompt_tokens": 4}, LONG[-4:]),
        ({"truncate_prompt_tokens": 4.0, "truncation_side": "left"}, LONG[-4:]),
        ({"truncate_prompt_tokens": 4, "truncation_side": "right"}, LONG[:4]),
        ({"truncate_prompt_tokens": CONTEXT}, LONG[-CONTEXT + 1 :]),
        ({"truncate_prompt_tokens": CONTEXT - 20, "max_tokens": 20}, LONG[-CONTEXT + 20 :]),
        ({"truncate_prompt_tokens": -1, "max_tokens": 20}, LONG[-CONTEXT + 20 :]),
        ({"truncate_prompt_tokens": -1}, LONG[-CONTEXT + 16 :]),
        ({"truncate_prompt_tokens": -1, "prompt": LONG[:5]}, LONG[:5]),
        ({"truncate_prompt_tokens": 9, "prompt": LONG[:5]}, LONG[:5]),
    ],
)
async def test_of_token_ids_so_many_are_kept(service: Service, fields: dict[str, Any], tokens: list[int]) -> None:
    assert kept(service, completion(**fields)) == tokens


async def test_of_texts_the_tokens_are_those_of_the_whole_text(service: Service) -> None:
    text = "one two three " * 2000  # more than the context by its size
    whole = service.reader.tokenizer.encode(text)
    assert kept(service, completion(prompt=text, truncate_prompt_tokens=30)) == whole[-30:]
    assert kept(service, completion(prompt=text, truncate_prompt_tokens=30, truncation_side="right")) == whole[:30]
    first, second = service.ask_typed(completion(prompt=[text, "hi"], truncate_prompt_tokens=3)).prompts
    assert (list(first.tokens), list(second.tokens)) == (whole[-3:], service.reader.tokenizer.encode("hi"))
    with pytest.raises(PromptTooLongError):
        kept(service, completion(prompt=text))


async def test_a_text_that_is_too_long_to_be_tokenized_whole_is_refused_as_without_truncation(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "hamster " * (MAX_TRUNCATED_BYTES // 8)
    assert len(kept(service, completion(prompt=text, truncate_prompt_tokens=5))) == 5
    monkeypatch.setattr(service.reader.tokenizer, "encode", None)
    with pytest.raises(PromptTooLongError, match=f"; texts of up to {MAX_TRUNCATED_BYTES} bytes are truncated"):
        kept(service, completion(prompt=text + "s", truncate_prompt_tokens=5))
    monkeypatch.undo()
    monkeypatch.setattr(service.reader, "context", 1 << 20)
    monkeypatch.setattr(Service, "max_model_len", 1 << 20)
    assert len(kept(service, completion(prompt=text + "s", truncate_prompt_tokens=5))) == 5


async def test_of_chats_an_end_of_what_the_template_makes_is_kept(service: Service) -> None:
    body = ChatBody(**CHAT, truncate_prompt_tokens=9)
    whole = service.reader.tokenizer.encode(service.reader.rendered(body), add_special_tokens=False)
    assert kept(service, body) == whole[-9:]
    assert kept(service, ChatBody(**CHAT, truncate_prompt_tokens=-1)) == whole[-CONTEXT + 1 :]
    assert (
        kept(service, ChatBody(**CHAT, truncate_prompt_tokens=-1, max_completion_tokens=30)) == whole[-CONTEXT + 30 :]
    )


async def test_what_the_workers_pools_hold_limits_what_is_kept(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Service, "max_model_len", 40)
    assert kept(service, completion(truncate_prompt_tokens=-1, max_tokens=10)) == LONG[-30:]
    with pytest.raises(PromptTooLongError, match="50 prompt tokens"):
        kept(service, completion(truncate_prompt_tokens=50))


@pytest.mark.parametrize("wrong", [0, -2, 1.5, True, "5", [5], 2**63])
async def test_other_numbers_are_refused_by_name(service: Service, wrong: Any) -> None:
    with pytest.raises(InvalidRequestError, match="truncate_prompt_tokens") as refused:
        kept(service, parse_body(CompletionBody, {"prompt": LONG, "truncate_prompt_tokens": wrong}))
    assert refused.value.param == "truncate_prompt_tokens"


@pytest.mark.parametrize("wrong", ["middle", "", 5])
async def test_other_sides_are_refused_by_name(service: Service, wrong: Any) -> None:
    with pytest.raises(InvalidRequestError, match="truncation_side") as refused:
        kept(service, parse_body(CompletionBody, {"prompt": LONG[:5], "truncation_side": wrong}))
    assert refused.value.param == "truncation_side"


async def test_more_than_the_context_leaves_is_refused_before_anything_is_tokenized(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.reader, "tokenizer", None)
    for fields, says in (
        ({"truncate_prompt_tokens": CONTEXT + 1}, f"{CONTEXT + 1} exceed the context"),
        ({"truncate_prompt_tokens": CONTEXT, "max_tokens": 1}, f"{CONTEXT} and 1 of max_tokens exceed the context"),
    ):
        with pytest.raises(PromptTooLongError, match=says) as refused:
            kept(service, completion(prompt="hi", **fields))
        assert refused.value.param == "truncate_prompt_tokens"
    with pytest.raises(PromptTooLongError) as refused:  # nothing is left to be kept
        kept(service, completion(truncate_prompt_tokens=-1, max_tokens=CONTEXT))
    assert refused.value.param == "max_tokens"


async def test_a_prompt_counts_at_least_as_what_is_kept_of_it(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.reader, "_caches_prefixes", False)
    assert service.reader.least_tokens(completion()) == [100]
    assert service.reader.least_tokens(completion(truncate_prompt_tokens=7)) == [7]
    assert service.reader.least_tokens(completion(truncate_prompt_tokens=-1)) == [1]


async def test_whether_thinking_has_begun_is_what_the_kept_tokens_say(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = service.reader
    body = ChatBody(messages=[{"role": "user", "content": "hi"}], truncate_prompt_tokens=2, truncation_side="right")
    parsers = SimpleNamespace(reasoning=object(), tool_calls=None, marks=())
    tokens = reader.tokenizer.encode("<think>")
    seen: Any = reader._parts(body, parsers, "never mind", tokens)  # type: ignore[arg-type]
    assert seen.prompt_end == "<think>"


@pytest.mark.parametrize("path", ["/tokenize", "/tokenizer/encode", "/v1/chat/render", "/v1/responses/input_tokens"])
@pytest.mark.parametrize("field", [{"truncate_prompt_tokens": 5}, {"truncation_side": "left"}])
def test_where_nothing_is_answered_it_is_refused_by_name(path: str, field: dict[str, Any]) -> None:
    kind = TOKEN_ROUTES[path].kind
    with pytest.raises(InvalidRequestError, match=next(iter(field))):
        parse_body(kind, {**({"input": "hi"} if path.startswith("/v1/responses") else CHAT), **field})
