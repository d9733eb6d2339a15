"""The `openai` package against /v1/responses, unmodified: whole and streamed, turns that are kept, tools, reasoning, errors."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai.types.responses import Response

from rtp_llm.errors import WorkerLostError
from rtp_llm.router.service import LARGE_BODY_BYTES
from tests.router.scripted_service import LOGPROB, ScriptedService

LOGPROBS: Any = ["message.output_text.logprobs"]
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
CALL = 'Let me see.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
THOUGHT = "<think>\nIt is a sum.\n</think>\n\nIt is 81."


@pytest_asyncio.fixture
async def router() -> AsyncIterator[ScriptedService]:
    async with ScriptedService.running() as router:
        yield router


@pytest_asyncio.fixture
async def client(router: ScriptedService) -> openai.AsyncOpenAI:
    return client_of(router)


def client_of(router: ScriptedService, key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url="http://router/v1", api_key=key, http_client=router.http, max_retries=0)


def plain(response: Response) -> dict[str, Any]:
    """Without what differs each time."""
    shown = response.model_dump(exclude={"id", "created_at", "completed_at"})
    for item in shown["output"]:
        del item["id"]
        item.pop("call_id", None)
        item.pop("parsed_arguments", None)
        for part in item.get("content") or ():
            part.pop("parsed", None)
    return shown


async def both(router: ScriptedService, says: str, **asked: Any) -> Response:
    """The response, which is the same streamed: the client puts its events together."""
    client = client_of(router)
    router.says = [says, says]
    whole = await client.responses.create(model="demo", **asked)
    async with client.responses.stream(model="demo", **asked) as stream:
        events = [event async for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created" and events[1].type == "response.in_progress"
    last: Any = events[-1]
    assert last.type == f"response.{whole.status}" and plain(last.response) == plain(whole)
    return whole


async def test_a_text_is_answered_whole_and_as_a_stream_alike(router: ScriptedService) -> None:
    response = await both(router, "Hello, world!", input="hi", instructions="Be kind.", metadata={"a": "b"}, user="me")
    assert response.id.startswith("resp_") and (response.object, response.model) == ("response", "demo")
    assert (response.status, response.output_text, response.error) == ("completed", "Hello, world!", None)
    assert (response.instructions, response.metadata, response.user) == ("Be kind.", {"a": "b"}, "me")
    assert response.tool_choice == "auto" and response.tools == [] and response.parallel_tool_calls
    [message] = response.output
    assert message.type == "message" and message.id.startswith("msg_") and message.status == "completed"
    usage = response.usage
    assert usage is not None and usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.output_tokens == 5 and usage.output_tokens_details.reasoning_tokens == 0
    assert "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi<|im_end|>" in router.prompts[0]
    assert router.prompts[0] == router.prompts[1]


async def test_a_limit_makes_a_response_incomplete(router: ScriptedService) -> None:
    response = await both(router, "Hello, world!", input="hi", max_output_tokens=2)
    assert response.status == "incomplete" and response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens" and response.max_output_tokens == 2
    assert response.output[0].status == "incomplete" and response.output_text == "Hello,"  # type: ignore[union-attr]


async def test_reasoning_is_an_item_of_its_own_and_goes_back(
    router: ScriptedService, client: openai.AsyncOpenAI
) -> None:
    response = await both(router, THOUGHT, input="What is 23 + 58?", include=[*LOGPROBS], top_logprobs=1)
    thought, message = response.output
    assert thought.type == "reasoning" and thought.content and thought.content[0].text == "It is a sum."
    assert message.type == "message" and message.content[0].type == "output_text"
    assert message.content[0].text == "It is 81." and response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens > 3
    logprobs = message.content[0].logprobs
    assert logprobs is not None and "".join(each.token for each in logprobs) == "It is 81.<|im_end|>"
    assert [each.logprob for each in logprobs] == [LOGPROB] * len(logprobs)
    router.says = ["Yes."]
    turns: Any = [
        {"role": "user", "content": "What is 23 + 58?"},
        *response.output,
        {"role": "user", "content": "Yes?"},
    ]
    await client.responses.create(model="demo", input=turns)
    assert "<|im_start|>assistant\nIt is 81.<|im_end|>" in router.prompts[-1]


async def test_tools_are_called_and_their_results_taken(router: ScriptedService, client: openai.AsyncOpenAI) -> None:
    response = await both(router, CALL, input="What is the weather in Paris?", tools=[WEATHER])
    message, call = response.output
    assert message.type == "message" and response.output_text == "Let me see."
    assert call.type == "function_call" and call.id is not None and call.id.startswith("fc_")
    assert (call.name, json.loads(call.arguments), call.status) == ("get_weather", {"city": "Paris"}, "completed")
    assert response.tools[0].to_dict() == WEATHER
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    router.says = ["It is sunny."] * 2
    kept = await client.responses.create(
        model="demo", input=[result], previous_response_id=response.id, tools=[WEATHER]
    )
    turns: Any = [{"role": "user", "content": "What is the weather in Paris?"}, *response.output, result]
    sent = await client.responses.create(model="demo", input=turns, tools=[WEATHER], store=False)
    assert kept.output_text == sent.output_text == "It is sunny." and router.prompts[-2] == router.prompts[-1]
    assert router.prompts[-1].endswith(
        '<|im_start|>assistant\nLet me see.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n'
        "</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


async def test_a_typed_tool_is_parsed(router: ScriptedService, client: openai.AsyncOpenAI) -> None:
    router.says = [CALL]
    response = await client.responses.parse(model="demo", input="weather?", tools=[WEATHER])
    call = response.output[1]
    assert call.type == "function_call" and call.parsed_arguments == {"city": "Paris"}


async def test_turns_go_on_with_what_is_kept(router: ScriptedService, client: openai.AsyncOpenAI) -> None:
    router.says = ["One.", "Two.", "Three."]
    first = await client.responses.create(model="demo", input="1", instructions="Count.")
    second = await client.responses.create(model="demo", input="2", previous_response_id=first.id)
    third = await client.responses.create(model="demo", input="3", previous_response_id=second.id, instructions="Up.")
    assert third.previous_response_id == second.id
    assert router.prompts[-1] == (
        "<|im_start|>system\nUp.<|im_end|>\n<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\nOne.<|im_end|>\n"
        "<|im_start|>user\n2<|im_end|>\n<|im_start|>assistant\nTwo.<|im_end|>\n<|im_start|>user\n3<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert await client.responses.retrieve(third.id) == third
    items: list[Any] = [item async for item in await client.responses.input_items.list(third.id, order="asc", limit=2)]
    assert [item.content[0].text for item in items] == ["1", "One.", "2", "Two.", "3"]
    assert items[1].id == first.output[0].id and len({item.id for item in items}) == 5  # type: ignore[union-attr]
    latest: list[Any] = [item async for item in await client.responses.input_items.list(third.id, after=items[2].id)]
    assert [item.content[0].text for item in latest] == ["One.", "1"]
    count = await client.responses.input_tokens.count(
        model="demo", input="3", previous_response_id=second.id, instructions="Up."
    )
    assert third.usage is not None and count.input_tokens == third.usage.input_tokens


async def test_an_item_of_a_kept_output_may_be_named(router: ScriptedService, client: openai.AsyncOpenAI) -> None:
    router.says = ["One.", "Two."]
    first = await client.responses.create(model="demo", input="1")
    named: Any = [{"type": "item_reference", "id": first.output[0].id}, {"id": first.output[0].id}]  # type: ignore[union-attr]
    await client.responses.create(model="demo", input=[*named, {"role": "user", "content": "2"}])
    assert router.prompts[-1].count("<|im_start|>assistant\nOne.<|im_end|>") == 2
    with pytest.raises(openai.NotFoundError, match="item with id 'msg_1' not found") as missing:
        await client.responses.create(model="demo", input=[{"type": "item_reference", "id": "msg_1"}])
    assert missing.value.param == "input"


async def test_items_of_one_id_are_told_apart_and_all_pages_come(
    router: ScriptedService, client: openai.AsyncOpenAI
) -> None:
    router.says = ["One.", "Two."]
    twice: Any = [{"role": "user", "content": "1", "id": "msg_a", "type": "message"}] * 2
    first = await client.responses.create(model="demo", input=twice)
    [said] = first.output
    again: Any = [{"type": "item_reference", "id": said.id}, said, *twice]  # type: ignore[union-attr]
    second = await client.responses.create(model="demo", input=again, previous_response_id=first.id)
    items = [item async for item in await client.responses.input_items.list(second.id, limit=1, order="asc")]
    assert len({item.id for item in items}) == len(items) == 7
    assert [items[0].id, items[2].id] == ["msg_a", said.id]  # type: ignore[union-attr]
    metrics = router.service.own_metrics().decode()
    assert "rtp_llm_stored_responses 2.0" in metrics
    assert f"rtp_llm_stored_responses_bytes {float(router.service.responses.num_bytes)}" in metrics


async def test_a_message_that_is_unfinished_is_gone_on_with(
    router: ScriptedService, client: openai.AsyncOpenAI
) -> None:
    router.says = ["Hello, world!", " world!", "?"]
    first = await client.responses.create(model="demo", input="hi", max_output_tokens=2)
    turns: Any = [{"role": "user", "content": "hi"}, *first.output]
    await client.responses.create(model="demo", input=turns)
    assert router.prompts[-1].endswith("<|im_start|>assistant\nHello,")
    await client.responses.create(model="demo", input=turns, extra_body={"continue_final_message": False})
    assert router.prompts[-1].endswith("<|im_start|>assistant\nHello,<|im_end|>\n<|im_start|>assistant\n")


async def test_what_is_deleted_or_was_not_stored_is_not_found(
    router: ScriptedService, client: openai.AsyncOpenAI
) -> None:
    router.says = ["One.", "Two.", "Three.", "Four."]
    first = await client.responses.create(model="demo", input="1")
    second = await client.responses.create(model="demo", input="2", previous_response_id=first.id)
    await client.responses.delete(first.id)
    hidden = await client.responses.create(model="demo", input="3", store=False)
    assert first.store and not hidden.store  # type: ignore[attr-defined]
    for id in (first.id, hidden.id, "resp_1"):
        for asked in (
            client.responses.retrieve(id),
            client.responses.delete(id),
            client.responses.cancel(id),
            client.responses.input_items.list(id),
        ):
            with pytest.raises(openai.NotFoundError, match=f"response with id '{id}' not found: each router keeps"):
                await asked
        with pytest.raises(openai.NotFoundError, match="previous response with id") as missing:
            await client.responses.create(model="demo", input="4", previous_response_id=id)
        assert (missing.value.code, missing.value.param) == ("previous_response_not_found", "previous_response_id")
    await client.responses.create(model="demo", input="4", previous_response_id=second.id)
    assert "assistant\nOne." in router.prompts[-1]  # which is part of what followed it
    with pytest.raises(openai.BadRequestError, match="was not made in the background"):
        await client.responses.cancel(second.id)
    with pytest.raises(openai.BadRequestError, match="stream is not supported"):
        await client.responses.retrieve(second.id, stream=True)
    for wrong in ({"limit": 0}, {"limit": 101}, {"order": "up"}, {"after": "msg_1"}):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.input_items.list(second.id, **wrong)  # type: ignore[arg-type]
        assert refused.value.param == next(iter(wrong))


@pytest.mark.parametrize(
    ("asked", "param", "says"),
    [
        ({"reasoning": {"effort": "low"}}, "reasoning.effort", "reasoning.effort is not supported for demo"),
        ({"input": []}, "input", "input must hold at least one message"),
        ({"input": "word " * 3000}, "input", "maximum context length is 2048 tokens"),
        ({"max_output_tokens": 2048}, "max_output_tokens", "^.*max_output_tokens: 2048 and 9 prompt tokens exceed"),
        ({"max_output_tokens": 1, "extra_body": {"min_tokens": 2}}, "min_tokens", "min_tokens"),
    ],
)
async def test_what_is_wrong_is_named_as_the_client_wrote_it(
    client: openai.AsyncOpenAI, asked: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=says) as refused:
        await client.responses.create(**{"model": "demo", "input": "hi", **asked})
    assert refused.value.param == param and "messages:" not in refused.value.message


async def test_where_nothing_is_kept_a_response_says_so() -> None:
    async with ScriptedService.running(**{"http.stored_responses_bytes": 0}) as router:
        client = client_of(router)
        router.says = ["One."]
        response = await client.responses.create(model="demo", input="1", store=True)
        assert not response.store  # type: ignore[attr-defined]
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(response.id)


async def test_a_tenant_sees_its_own_alone(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice key-a\nbob key-b\n")
    async with ScriptedService.running(**{"http.api_keys_file": str(keys)}) as router:
        alice, bob = client_of(router, "key-a"), client_of(router, "key-b")
        router.says = ["One.", "Two."]
        first = await alice.responses.create(model="demo", input="1")
        item: Any = [{"type": "item_reference", "id": first.output[0].id}]  # type: ignore[union-attr]
        for asked in (
            bob.responses.retrieve(first.id),
            bob.responses.delete(first.id),
            bob.responses.create(model="demo", input="2", previous_response_id=first.id),
            bob.responses.create(model="demo", input=item),
            bob.responses.input_tokens.count(model="demo", input="2", previous_response_id=first.id),
        ):
            with pytest.raises(openai.NotFoundError):
                await asked
        assert (await alice.responses.retrieve(first.id)).output_text == "One."
        assert (await alice.responses.create(model="demo", input=item, previous_response_id=first.id)).id


async def test_a_long_history_is_read_elsewhere_and_counts_against_the_bodys_limit(
    router: ScriptedService, client: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text is most of what is kept; the template leaves out what was thought before the last question."""
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "so " * 20_000}]}
    router.says = ["One.", "Two.", "Three."]
    turns: Any = [{"role": "user", "content": "1"}, thought, {"role": "user", "content": "2"}]
    first = await client.responses.create(model="demo", input=turns)  # a large body
    here: list[int] = []
    monkeypatch.setattr("rtp_llm.router.reading.BodyReader.typed", lambda *_: here.append(1))
    second = await client.responses.create(model="demo", input="3", previous_response_id=first.id)
    long: Any = [{"role": "user", "content": "4"}, thought, {"role": "user", "content": "5"}]
    await client.responses.create(model="demo", input=long, previous_response_id=second.id)
    assert not here and "user\n1<|im_end|>" in router.prompts[-1] and "assistant\nTwo." in router.prompts[-1]
    with pytest.raises(openai.NotFoundError, match="previous response with id 'resp_1' not found"):
        await client.responses.create(model="demo", input=long, previous_response_id="resp_1")
    monkeypatch.setattr("rtp_llm.router.service.Service.max_body_bytes", len("so ") * 20_000 + 300)
    with pytest.raises(openai.APIStatusError, match="previous_response_id: what is kept under it has") as refused:
        await client.responses.create(model="demo", input="6", previous_response_id=second.id)
    assert refused.value.status_code == 413
    named: Any = [{"type": "item_reference", "id": second.output[0].id}] * 700  # type: ignore[union-attr]
    with pytest.raises(openai.APIStatusError, match="input: what is kept under it has") as refused:
        await client.responses.create(model="demo", input=named)
    assert refused.value.status_code == 413 and len(json.dumps(named)) > LARGE_BODY_BYTES


async def test_a_stream_that_fails_says_so_and_is_not_kept(
    router: ScriptedService, client: openai.AsyncOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    router.says = ["Hello", WorkerLostError("lost thrice")]
    caplog.set_level(logging.INFO, "rtp_llm.access")
    events: list[Any] = [event async for event in await client.responses.create(model="demo", input="hi", stream=True)]
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    failed = events[-1]
    assert failed.type == "response.failed" and failed.response.status == "failed"
    assert (failed.response.error.code, failed.response.error.message) == ("server_error", "lost thrice")
    assert failed.response.output_text == "Hello" and failed.response.output[0].status == "incomplete"
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(failed.response.id)
    [line] = [json.loads(record.message) for record in caplog.records if record.name == "rtp_llm.access"]
    assert (line["endpoint"], line["status"], line["error"]) == ("responses", 500, "lost thrice")
    assert 'rtp_llm_requests_total{endpoint="responses",status="500"} 1.0' in router.service.own_metrics().decode()


async def test_the_synchronous_client_does_the_same(router: ScriptedService) -> None:
    def use(url: str) -> None:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            first = client.responses.create(model="demo", input="1", tools=[WEATHER])
            assert first.output_text == "Let me see."
            with client.responses.stream(model="demo", input="2", previous_response_id=first.id) as stream:
                assert "".join(each.delta for each in stream if each.type == "response.output_text.delta") == "Two."
                second = stream.get_final_response()
            assert client.responses.retrieve(second.id).output_text == "Two."
            assert len(list(client.responses.input_items.list(second.id, limit=1))) == 4
            client.responses.delete(second.id)
            with pytest.raises(openai.NotFoundError):
                client.responses.retrieve(second.id)

    router.says = [CALL, "Two."]
    async with router.listening() as url:
        await asyncio.to_thread(use, url)
