"""The HTTP surface over a scripted backend: shapes, streams, errors."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence

import httpx
import openai
import pytest

from rtp_llm.errors import OverloadedError, WorkerLostError
from rtp_llm.request import SamplingParams
from rtp_llm.router.ingress import Backend, Prompt, build_ingress
from rtp_llm.router.responses import Delta, TokenLogprob
from rtp_llm.router.schemas import ChatBody, CompletionBody

WORDS = ["Hello", ",", " world"]


class ScriptedPrompt:
    """Answers WORDS, one a delta; `error` after the first word if given."""

    num_tokens = 5

    def __init__(self, sampling: SamplingParams, backend: "ScriptedBackend") -> None:
        self.sampling = sampling
        self.backend = backend
        self.num_choices = sampling.n
        self.logprobs = sampling.logprobs is not None

    async def answer(self, request_id: str, choice: int) -> AsyncGenerator[Delta, None]:
        self.backend.running += 1
        try:
            for i, word in enumerate(WORDS):
                if self.backend.error is not None and i == self.backend.error_after:
                    raise self.backend.error
                logprobs = [TokenLogprob(word, word.encode(), -0.5, 0, [(word, word.encode(), -0.5)])]
                yield Delta(
                    text=word,
                    logprobs=logprobs if self.logprobs else (),
                    finish_reason="stop" if i + 1 == len(WORDS) else None,
                    num_tokens=1,
                )
                if self.backend.hang:
                    await asyncio.Event().wait()
        finally:
            self.backend.running -= 1


class ScriptedBackend:
    model_name = "demo"
    max_model_len = 128
    max_body_bytes = 2000
    ping_s = 0.05

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.error_after = 0
        self.hang = False
        self.running = 0
        self.counted: list[tuple[str, int]] = []

    def complete(self, body: CompletionBody) -> Sequence[Prompt]:
        return [ScriptedPrompt(body.sampling({}), self) for _ in body.prompts()]

    def chat(self, body: ChatBody) -> Prompt:
        return ScriptedPrompt(body.sampling({}), self)

    async def wait_ready(self, timeout_s: float, num_workers: int) -> bool:
        return True

    async def metrics(self) -> bytes:
        return b"rtp_llm_up 1\n"

    def count(self, endpoint: str, status: int) -> None:
        self.counted.append((endpoint, status))


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend()


@pytest.fixture
def http(backend: Backend) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=build_ingress(lambda: backend))
    return httpx.AsyncClient(transport=transport, base_url="http://router")


@pytest.fixture
def client(http: httpx.AsyncClient) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url="http://router/v1", api_key="none", http_client=http, max_retries=0)


CHAT = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}


async def test_a_chat_answer_has_openais_shape(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(**CHAT, n=2, logprobs=True, top_logprobs=1)  # type: ignore[call-overload]
    assert [choice.message.content for choice in answer.choices] == ["Hello, world"] * 2
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs.content[0].top_logprobs[0].token == "Hello"
    assert answer.usage.prompt_tokens == 5 and answer.usage.completion_tokens == 6


async def test_a_chat_stream_opens_with_the_role_and_ends_with_usage(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True})  # type: ignore[call-overload]
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello, world"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens == 8


async def test_completions_take_lists_and_number_choices_by_prompt(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="demo", prompt=[[1, 2], [3]], n=2, logprobs=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[3].logprobs.tokens == WORDS  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": "hi"}, "messages"),
        ({"stop": [""]}, "stop"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"presence_penalty": 1.0}, "presence_penalty"),
        ({"model": "other"}, "model"),
    ],
)
async def test_a_bad_field_is_named(http: httpx.AsyncClient, change: dict[str, object], param: str) -> None:
    answer = await http.post("/v1/chat/completions", json={**CHAT, **change})
    assert answer.status_code == (404 if param == "model" else 400)
    error = answer.json()["error"]
    assert error["param"] == param and param in error["message"]


async def test_malformed_json_and_a_large_body_are_refused(http: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    broken = await http.post("/v1/chat/completions", content=b"{nope")
    assert broken.status_code == 400 and "not valid JSON" in broken.json()["error"]["message"]
    large = await http.post("/v1/chat/completions", content=b"x" * 3000)
    assert large.status_code == 413 and "2000 bytes" in large.json()["error"]["message"]
    assert backend.counted == [("chat_completions", 400), ("chat_completions", 413)]


async def test_unknown_fields_are_ignored(http: httpx.AsyncClient) -> None:
    assert (await http.post("/v1/chat/completions", json={**CHAT, "mystery": 1})).status_code == 200


async def test_an_error_before_the_first_token_is_an_http_error(
    http: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    backend.error = OverloadedError("no room")
    answer = await http.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert answer.status_code == 429 and answer.headers["retry-after"] == "1"


async def test_an_error_after_the_first_token_is_an_event(http: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.error, backend.error_after = WorkerLostError("the third worker was lost"), 1
    answer = await http.post("/v1/chat/completions", json={**CHAT, "stream": True})
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert answer.status_code == 200 and events[-1] == "[DONE]"
    assert json.loads(events[-2])["error"]["message"] == "the third worker was lost"


async def test_a_silent_stream_is_pinged_and_its_end_frees_the_answer(backend: ScriptedBackend) -> None:
    backend.hang = True
    received: list[bytes] = []
    pinged = asyncio.Event()
    body = json.dumps({**CHAT, "stream": True}).encode()
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict[str, object]:
        message = next(messages, None)
        if message is None:
            await pinged.wait()
            return {"type": "http.disconnect"}
        return message

    async def send(message: dict[str, object]) -> None:
        received.append(message.get("body", b""))  # type: ignore[arg-type]
        if message.get("body") == b": ping\n\n":
            pinged.set()

    scope = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "raw_path": b"", "query_string": b"",
        "headers": [], "http_version": "1.1", "scheme": "http", "asgi": {"version": "3.0"}, "server": ("router", 80),
    }  # fmt: skip
    await asyncio.wait_for(build_ingress(lambda: backend)(scope, receive, send), 5)  # type: ignore[arg-type]
    assert pinged.is_set() and backend.running == 0
