"""The HTTP surface over a scripted backend: shapes, streams, errors."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from rtp_llm.config import Pool, load_config
from rtp_llm.errors import DeadlineUnreachableError, OverloadedError, TaskError, WorkerLostError
from rtp_llm.model.answer_text import Delta, NamedToken, TokenLogprob
from rtp_llm.pool_state import PauseMode
from rtp_llm.router.access import Access
from rtp_llm.router.account import current_account
from rtp_llm.router.answers import Question
from rtp_llm.router.ingress import Backend, build_ingress
from rtp_llm.router.reading import BodyReader
from rtp_llm.router.response_store import Memory, ResponseStore
from rtp_llm.router.responses import CompletionShape
from rtp_llm.router.schemas import Body, ChatBody, CompletionBody
from rtp_llm.router.terms import Terms
from rtp_llm.router.token_bodies import TokenBody
from rtp_llm.sampling_params import SamplingParams
from rtp_llm.tracing import Tracing

JSON = {"Content-Type": "application/json"}
WORDS = ["Hello", ",", " world"]


class ScriptedPrompt:
    """Answers WORDS, one a delta; `error` after the first word if given."""

    num_tokens = 5
    number = 0

    def __init__(self, sampling: SamplingParams, backend: "ScriptedBackend") -> None:
        self.sampling = sampling
        self.backend = backend
        self.num_choices = sampling.n
        self.logprobs = sampling.logprobs is not None

    async def answer(self, request_id: str, choice: int) -> AsyncGenerator[Delta, None]:
        self.backend.running += 1
        current_account().answer(self.number, choice)
        self.backend.arrivals.append(current_account().arrived)
        self.backend.begun.append(choice)
        self.backend.begins.release()
        try:
            if self.backend.gate is not None:
                await self.backend.gate.wait()
            words = self.backend.words
            for i, word in enumerate(words):
                if self.backend.error is not None and i == self.backend.error_after:
                    raise self.backend.error
                logprobs = [TokenLogprob(word, word.encode(), -0.5, 0, [NamedToken(word, word.encode(), -0.5)])]
                yield Delta(
                    text=word,
                    logprobs=logprobs if self.logprobs else (),
                    finish_reason="stop" if i + 1 == len(words) else None,
                    num_tokens=1,
                    num_cached_tokens=self.backend.cached if i == 0 else 0,
                )
                if self.backend.hang:
                    await asyncio.Event().wait()
                await asyncio.sleep(0)
        finally:
            self.backend.running -= 1


@cache
def reader() -> BodyReader:
    """Of the demo model."""
    return BodyReader(load_config(environ={}))


class ScriptedPools:
    """Notes what is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def status(self) -> dict[str, Any]:
        return {"is_paused": False}

    async def pause(self, *asked: Any) -> dict[str, Any]:
        return self._note("pause", *asked)

    async def resume(self, *asked: Any) -> dict[str, Any]:
        return self._note("resume", *asked)

    async def update_weights(self, *asked: Any) -> dict[str, Any]:
        return self._note("update_weights", *asked)

    async def reset_prefix_cache(self, *asked: Any) -> dict[str, Any]:
        return self._note("reset_prefix_cache", *asked)

    def _note(self, *asked: Any) -> dict[str, Any]:
        self.asked.append(asked)
        return {"status": "ok"}


class ScriptedBackend:
    model_name = "demo"
    model_names = ("demo", "other")
    max_model_len = 128
    max_body_bytes = 1 << 20
    upload_timeout_s = 10.0
    cors_origins: list[str] = []  # noqa: RUF012
    session_header = "X-Session-Id"
    ping_s = 0.05
    tracing: Tracing | None = None

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.error_after = 0
        self.hang = False
        self.full = False
        self.reading = 0
        self.words = WORDS
        self.running = 0
        self.begun: list[int] = []  # choices, in order
        self.begins = asyncio.Semaphore(0)
        self.gate: asyncio.Event | None = None  # before the first word
        self.cached = 0
        self.arrivals: list[float] = []  # of a request, as who reads it and who answers it know it
        self.counted: list[tuple[str, int]] = []
        self.access = Access({})
        self.pools = ScriptedPools()
        self.tenants: list[str] = []
        self.terms: list[Terms] = []  # of the headers
        self.refusal: OverloadedError | None = None
        self.workers = 1
        self.ended: str | None = None  # a background task
        self.responses = ResponseStore(8, 1 << 20)

    @contextmanager
    def admission(self) -> Iterator[None]:
        if self.full:
            raise OverloadedError("too many are being read")
        self.reading += 1
        try:
            yield
        finally:
            self.reading -= 1

    async def ask(self, kind: type[Body], body: bytes | bytearray, terms: Terms) -> Question:
        self.terms.append(terms)
        if self.refusal is not None:
            raise self.refusal
        self.arrivals.append(current_account().arrived)
        self.tenants.append(current_account().tenant)
        asked = reader().parsed(kind, body)
        sampling = asked.sampling({})
        count = len(asked.prompts() or asked.conversations())
        return Question(
            prompts=[ScriptedPrompt(sampling, self) for _ in range(count)],
            stream=bool(asked.stream),
            include_usage=asked.include_usage,
            response=asked.asked_response(sampling),
            raw=asked.raw_shown(),
            memory=Memory(self.responses, terms.tenant, self.max_body_bytes),
        )

    async def tell(self, kind: type[TokenBody], body: bytes | bytearray, tenant: str) -> bytes:
        return b"{}"

    num_answers = 3

    def server_info(self) -> dict[str, Any]:
        return {"model": "demo"}

    least_workers = 1

    async def wait_ready(self, timeout_s: float, num_workers: int) -> bool:
        return self.workers >= num_workers

    def check_health(self) -> None:
        if self.ended is not None:
            raise TaskError(f"{self.ended} has ended")

    def worker_status(self) -> dict[str, Any]:
        return {"workers": ["as they are"]}

    async def cache_status(self) -> dict[str, Any]:
        return {"workers": ["as their caches are"]}

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


@pytest_asyncio.fixture
async def client(http: httpx.AsyncClient) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url="http://router/v1", api_key="none", http_client=http, max_retries=0
    ) as client:
        yield client


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


async def test_the_sampled_token_is_among_the_top_logprobs_of_a_completion() -> None:
    sampled = TokenLogprob("b", b"b", -2.0, 0, [NamedToken("a", b"a", -0.25, 1)], id=2)
    alone = TokenLogprob("a", b"a", -0.25, 1, [NamedToken("a", b"a", -0.25, 1), NamedToken("a", b"a", -3.0, 7)], id=1)
    choice = CompletionShape().whole_choice(0, Delta("ba", [sampled, alone]), with_logprobs=True)
    assert choice["logprobs"]["top_logprobs"] == [{"b": -2.0, "a": -0.25}, {"a": -0.25, "token_id:7": -3.0}]


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
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream_options": {}, "stream": False}, "stream_options"),
        ({"model": "other"}, "model"),
    ],
)
async def test_a_bad_field_is_named(http: httpx.AsyncClient, change: dict[str, object], param: str) -> None:
    answer = await http.post("/v1/chat/completions", json={**CHAT, **change})
    assert answer.status_code == (404 if param == "model" else 400)
    error = answer.json()["error"]
    assert error["param"] == param and param in error["message"]


async def test_malformed_json_and_a_large_body_are_refused(http: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    broken = await http.post("/v1/chat/completions", content=b"{nope", headers=JSON)
    assert broken.status_code == 400 and "not valid JSON" in broken.json()["error"]["message"]
    large = await http.post("/v1/chat/completions", content=b"x" * ((1 << 20) + 1), headers=JSON)
    assert large.status_code == 413 and "1048576 bytes" in large.json()["error"]["message"]
    assert backend.counted == [("chat_completions", 400), ("chat_completions", 413)]


async def test_a_body_is_too_large_as_soon_as_that_is_known(backend: ScriptedBackend) -> None:
    undeclared = Connection(backend, *[{"type": "http.request", "body": b"x" * (1 << 19), "more_body": True}] * 3)
    await undeclared.run()
    assert undeclared.status == 413
    for length in (b"1048577", b"9" * 5000):
        declared = Connection(backend)  # that sends nothing
        declared.scope = {**declared.scope, "headers": [*JSON_HEADERS, (b"content-length", length)]}
        await declared.run()
        assert declared.status == 413 and b"1048576 bytes" in declared.body


async def test_unknown_fields_are_ignored(http: httpx.AsyncClient) -> None:
    assert (await http.post("/v1/chat/completions", json={**CHAT, "mystery": 1})).status_code == 200


async def test_a_field_that_is_null_is_one_that_is_not_given(http: httpx.AsyncClient) -> None:
    nothing = {name: None for name in ChatBody.model_fields if name != "messages"}
    streamed = await http.post(
        "/v1/chat/completions", json={**CHAT, **nothing, "stream": True, "stream_options": {"include_usage": None}}
    )
    assert streamed.status_code == 200 and "usage" not in streamed.text
    assert (await http.post("/v1/chat/completions", json={**CHAT, **nothing})).status_code == 200
    nothing = {name: None for name in CompletionBody.model_fields if name != "prompt"}
    assert (await http.post("/v1/completions", json={"prompt": "hi", **nothing})).status_code == 200


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
    assert backend.counted == [("chat_completions", 500)]


async def test_a_stream_counts_once_when_it_ends(http: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    await http.post("/v1/chat/completions", json={**CHAT, "stream": True})
    await http.post("/v1/completions", json={"prompt": "a", "stream": True})
    assert backend.counted == [("chat_completions", 200), ("completions", 200)]


JSON_HEADERS = [(b"content-type", b"application/json")]


class Connection:
    """One request in ASGI's terms: what the client sends, and what it gets until it leaves."""

    scope = {  # noqa: RUF012
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "raw_path": b"", "query_string": b"",
        "headers": JSON_HEADERS, "http_version": "1.1", "scheme": "http",
        "asgi": {"version": "3.0"}, "server": ("router", 80),
    }  # fmt: skip

    def __init__(self, backend: ScriptedBackend, *sent: dict[str, object]) -> None:
        self._backend = backend
        self._sent = iter(sent)
        self._changed = asyncio.Event()
        self._left = asyncio.Event()
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""

    @classmethod
    def of(cls, backend: ScriptedBackend, body: dict[str, object]) -> "Connection":
        return cls(backend, {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False})

    async def run(self) -> None:
        await asyncio.wait_for(build_ingress(lambda: self._backend)(self.scope, self._receive, self._send), 5)  # type: ignore[arg-type]

    async def until(self, says: bytes) -> None:
        while says not in self.body:
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), 5)

    def leave(self) -> None:
        self._left.set()

    async def _receive(self) -> dict[str, object]:
        if (message := next(self._sent, None)) is not None:
            return message
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, object]) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])  # type: ignore[assignment, call-overload]
        self.body += message.get("body", b"")  # type: ignore[operator]
        self._changed.set()


STREAMED = {**CHAT, "stream": True}


async def test_a_silent_stream_is_pinged_and_its_end_frees_the_answer(backend: ScriptedBackend) -> None:
    backend.hang = True
    client = Connection.of(backend, STREAMED)
    running = asyncio.ensure_future(client.run())
    await client.until(b": ping\n\n: ping\n\n")
    client.leave()
    await running
    assert backend.running == 0 and client.body.startswith(b'data: {"id":')
    assert backend.counted == [("chat_completions", 499)]


async def test_headers_and_pings_come_while_the_first_token_is_waited_for(backend: ScriptedBackend) -> None:
    backend.gate = asyncio.Event()
    client = Connection.of(backend, STREAMED)
    running = asyncio.ensure_future(client.run())
    await client.until(b": ping\n\n: ping\n\n")
    assert client.status == 200 and client.headers[b"content-type"].startswith(b"text/event-stream")
    backend.gate.set()
    await client.until(b"data: [DONE]\n\n")
    client.leave()
    await running
    assert b'"content":"Hello"' in client.body


async def test_an_error_after_a_ping_is_an_event(backend: ScriptedBackend) -> None:
    backend.gate, backend.error = asyncio.Event(), OverloadedError("no room")
    client = Connection.of(backend, STREAMED)
    running = asyncio.ensure_future(client.run())
    await client.until(b": ping\n\n")
    backend.gate.set()
    await client.until(b"data: [DONE]\n\n")
    client.leave()
    await running
    assert client.status == 200 and b'"message":"no room"' in client.body


async def test_a_token_of_a_stream_costs_no_task(backend: ScriptedBackend, http: httpx.AsyncClient) -> None:
    tasks = 0

    def count(loop: asyncio.AbstractEventLoop, coroutine: Any, **kwargs: Any) -> asyncio.Task[Any]:
        nonlocal tasks
        tasks += 1
        return asyncio.Task(coroutine, loop=loop, **kwargs)

    asyncio.get_running_loop().set_task_factory(count)
    made = []
    for words in (3, 200):
        tasks, backend.words = 0, ["a"] * words
        answer = await http.post("/v1/chat/completions", json=STREAMED)
        assert answer.text.count("data: ") == words + 2
        made.append(tasks)
    assert made[0] == made[1]


async def test_an_upload_that_stalls_is_ended(backend: ScriptedBackend) -> None:
    backend.upload_timeout_s = 0.02
    client = Connection(backend, {"type": "http.request", "body": b'{"messages": ', "more_body": True})
    await client.run()
    assert client.status == 408 and client.headers[b"connection"] == b"close"
    assert "nothing came for 0.02 s, 13 bytes" in json.loads(client.body)["error"]["message"]
    assert backend.counted == [("chat_completions", 408)]


@pytest.mark.parametrize("body", [CHAT, STREAMED])
async def test_a_request_has_arrived_before_its_body_is_read(
    backend: ScriptedBackend, body: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second passes with each part of the body that is asked for."""
    text = json.dumps(body).encode()
    client = Connection(
        backend,
        {"type": "http.request", "body": text[:9], "more_body": True},
        {"type": "http.request", "body": text[9:], "more_body": False},
    )
    begin, passed, receive = time.monotonic(), 0, client._receive

    async def receive_later() -> dict[str, object]:
        nonlocal passed
        passed += 1
        return await receive()

    monkeypatch.setattr(client, "_receive", receive_later)
    monkeypatch.setattr("rtp_llm.router.account.time.monotonic", lambda: begin + passed)
    running = asyncio.ensure_future(client.run())
    await client.until(b'"finish_reason":"stop"')
    client.leave()
    await running
    assert client.status == 200 and passed >= 2
    assert backend.arrivals == [begin] * 2


async def test_the_first_choice_of_a_prompt_goes_ahead(client: openai.AsyncOpenAI, backend: ScriptedBackend) -> None:
    backend.gate = asyncio.Event()
    asked = asyncio.ensure_future(client.completions.create(model="demo", prompt=[[1], [2]], n=3))
    for _ in range(2):
        await backend.begins.acquire()
    await asyncio.sleep(0.02)
    assert backend.begun == [0, 0]
    backend.gate.set()
    answer = await asked
    assert backend.begun == [0, 0, 1, 2, 1, 2]
    assert [choice.text for choice in answer.choices] == ["Hello, world"] * 6


async def test_a_first_choice_that_fails_ends_the_others(http: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.error = OverloadedError("no room")
    answer = await http.post("/v1/chat/completions", json={**CHAT, "n": 3})
    assert answer.status_code == 429 and backend.begun == [0] and backend.running == 0


async def test_cached_tokens_are_counted_once_a_prompt_and_never_beyond_it(
    client: openai.AsyncOpenAI, backend: ScriptedBackend
) -> None:
    for cached, counted in ((4, 8), (16, 10)):
        backend.cached = cached
        usage = (await client.completions.create(model="demo", prompt=[[1], [2]], n=2)).usage
        assert usage is not None and usage.prompt_tokens_details is not None
        assert usage.prompt_tokens_details.cached_tokens == counted


@pytest.mark.parametrize(
    ("method", "path", "status", "param", "says"),
    [
        ("GET", "/v1/nothing", 404, None, "/v1/nothing"),
        ("GET", "/v1/completions", 405, None, "GET /v1/completions"),
        ("GET", "/health?wait_s=nan", 400, "wait_s", "nan"),
        ("GET", "/health?wait_s=inf", 400, "wait_s", "inf"),
        ("GET", "/health?wait_s=-1", 400, "wait_s", "-1"),
        ("GET", "/health?workers=-2", 400, "workers", "-2"),
        ("GET", "/health?workers=0", 400, "workers", "from 1"),
        ("GET", "/health?wait_s=soon", 400, "wait_s", "soon"),
    ],
)
async def test_what_no_endpoint_answers_has_openais_shape_too(
    http: httpx.AsyncClient, method: str, path: str, status: int, param: str | None, says: str
) -> None:
    answer = await http.request(method, path)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (status, param) and says in error["message"]
    assert status != 405 or answer.headers["allow"] == "POST"


async def test_who_is_not_admitted_is_told_when_to_come_again_and_nothing_is_read(
    http: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    backend.full = True
    answer = await http.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
    unread = Connection(backend)  # sends nothing
    await unread.run()
    assert unread.status == 429


async def test_reading_ends_when_the_answer_begins(backend: ScriptedBackend) -> None:
    backend.gate = asyncio.Event()
    client = Connection.of(backend, STREAMED)
    running = asyncio.ensure_future(client.run())
    await backend.begins.acquire()
    assert backend.reading == 0
    backend.gate.set()
    await client.until(b"[DONE]")
    client.leave()
    await running


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


PROBES = {"/live", "/ready", "/health", "/ping", "/version"}
STATUSES = [f"{prefix}/{name}_status" for prefix in ("", "/rtp_llm") for name in ("worker", "cache")]
CONTROLS = {"/pause", "/resume", "/update_weights", "/reset_prefix_cache", "/is_paused"}
RTP_LLMS = {"/", "/batch_infer"}
ADMINS = {"/metrics", "/load", "/server_info", "/get_server_info", *STATUSES, *CONTROLS}


def routes() -> list[tuple[str, str]]:
    """Method and path of each route that the app has."""
    app: Any = build_ingress(ScriptedBackend)
    return [(method, route.path) for route in app._app.routes for method in sorted(route.methods - {"HEAD"})]


def path_of(route: str) -> str:
    return route.replace("{name:path}", "demo").replace("{id}", "resp_1")


@pytest.mark.parametrize(("method", "path"), routes())
async def test_every_route_but_the_probes_asks_for_the_key_that_opens_it(
    http: httpx.AsyncClient, backend: ScriptedBackend, method: str, path: str
) -> None:
    backend.access = Access({"alice": "user-key"}, "admin-key")
    opens = (
        {"user-key", "admin-key", "n0ne", None} if path in PROBES else {"admin-key" if path in ADMINS else "user-key"}
    )
    for key in ("user-key", "admin-key", "n0ne", None):
        answer = await http.request(
            method, path_of(path), json=CHAT | {"prompt": "x"}, headers=bearer(key) if key else {}
        )
        assert (answer.status_code != 401) == (key in opens), f"{key}: {answer.status_code}"
        if answer.status_code == 401:
            assert answer.headers["www-authenticate"] == "Bearer"
            error = answer.json().get("error", answer.json())
            if path.startswith("/v1/messages"):
                assert error["type"] == "authentication_error"
            elif path in RTP_LLMS:
                assert error["error_code"] == 507
            else:
                assert (error["code"], error["param"]) == ("invalid_api_key", None)
            assert key is None or key not in error["message"]


async def test_without_key_files_every_route_is_open(http: httpx.AsyncClient) -> None:
    for method, path in routes():
        answer = await http.request(method, path_of(path), json=CHAT | {"prompt": "x"})
        # 400: a chat has no prompt; 404: no response is kept
        assert answer.status_code in ((404,) if "{id}" in path else (200, 400)), path


async def test_what_administrators_ask_of_the_pools_has_defaults_and_is_checked(
    http: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    both = [Pool.PREFILL, Pool.DECODE]
    assert (await http.get("/is_paused")).json() == {"is_paused": False}
    for route, body, asked in (
        ("/pause", None, ("pause", both, PauseMode.WAIT, None)),
        ("/pause", {"mode": "keep", "pool": "decode", "timeout_s": 3}, ("pause", [Pool.DECODE], PauseMode.KEEP, 3.0)),
        ("/resume", None, ("resume", both)),
        ("/reset_prefix_cache", None, ("reset_prefix_cache", both)),
        ("/reset_prefix_cache", {"pool": "decode"}, ("reset_prefix_cache", [Pool.DECODE])),
        ("/update_weights", {"path": "/w"}, ("update_weights", both, "/w", None, None)),
        (
            "/update_weights",
            {"path": "/w", "pool": "prefill", "mode": "abort"},
            ("update_weights", [Pool.PREFILL], "/w", PauseMode.ABORT, None),
        ),
    ):
        answer = await http.post(route, json=body or {})
        assert answer.status_code == 200 and backend.pools.asked.pop() == asked
    for route, content, param in (
        ("/pause", b'{"mode": "now"}', "mode"),
        ("/pause", b'{"timeout_s": 0}', "timeout_s"),
        ("/pause", b'{"path": "/w"}', "path"),
        ("/resume", b'{"pool": "both"}', "pool"),
        ("/resume", b"[]", None),
        ("/reset_prefix_cache", b'{"mode": "wait"}', "mode"),
        ("/resume", b"{", None),
        ("/update_weights", b"", "path"),
        ("/update_weights", b'{"path": "w"}', "path"),
    ):
        answer = await http.post(route, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text
    assert (await http.post("/pause", content=b"{}", headers={"Content-Type": "text/plain"})).status_code == 415
    assert backend.pools.asked == []


@pytest.mark.parametrize("path", sorted(ADMINS))
async def test_with_users_keys_alone_what_an_admin_sees_is_closed(
    http: httpx.AsyncClient, backend: ScriptedBackend, path: str
) -> None:
    backend.access = Access({"alice": "user-key"})
    method = "POST" if path in CONTROLS - {"/is_paused"} else "GET"
    answer = await http.request(method, path, headers=bearer("user-key"))
    assert answer.status_code == 401 and "http.admin_key_file" in answer.json()["error"]["message"]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", STATUSES)
async def test_statuses_are_asked_for_as_rtp_llm_does(http: httpx.AsyncClient, path: str, method: str) -> None:
    what = "as they are" if "worker" in path else "as their caches are"
    assert (await http.request(method, path)).json() == {"workers": [what]}


async def test_the_keys_name_is_the_tenant_and_openais_client_sends_it(
    http: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    backend.access = Access({"alice": "a-key", "bob": "b-key"})
    async with http as web:
        for key in ("b-key", "a-key"):
            one = openai.AsyncOpenAI(api_key=key, base_url="http://router/v1", http_client=web, max_retries=0)
            await one.completions.create(model="demo", prompt="x")
        refused = openai.AsyncOpenAI(api_key="c-key", base_url="http://router/v1", http_client=web, max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            await refused.completions.create(model="demo", prompt="x")
    assert backend.tenants == [terms.tenant for terms in backend.terms] == ["bob", "alice"]
    assert backend.counted[-1] == ("completions", 401)


async def test_nothing_of_a_body_is_read_before_its_key(backend: ScriptedBackend) -> None:
    backend.access = Access({"alice": "a-key"})
    unread = Connection(backend)  # sends nothing
    await unread.run()
    assert unread.status == 401


async def test_a_router_without_workers_lives_and_is_not_ready(
    http: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    assert [(await http.get(path)).status_code for path in ("/live", "/ready")] == [200, 200]
    backend.workers = 0
    assert [(await http.get(path)).status_code for path in ("/live", "/ready")] == [200, 503]
    backend.least_workers = 0  # all may be gone, and come back for what is asked
    statuses = [(await http.get(path)).status_code for path in ("/ready", "/health", "/health?workers=1")]
    assert statuses == [200, 200, 503]


async def test_a_router_that_has_lost_a_background_task_says_that_it_does_not_live(
    http: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    backend.ended = "the watch"
    answer = await http.get("/live")
    assert answer.status_code == 500 and "the watch" in answer.json()["error"]["message"]


async def test_timeouts_and_a_session_come_in_headers_and_a_wrong_one_is_refused_before_the_body_is_read(
    http: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    headers = {"X-Request-Timeout": "30", "x-ttft-timeout": "1.5", "x-session-id": "s"}
    answer = await http.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert answer.status_code == 200 and backend.terms == [Terms(timeout_s=30, ttft_timeout_s=1.5, session="s")]
    refused = await http.post("/v1/chat/completions", json=CHAT, headers={"X-TTFT-Timeout": "soon"})
    assert refused.status_code == 400 and len(backend.terms) == 1
    assert refused.json()["error"]["param"] == "X-TTFT-Timeout"


@pytest.mark.parametrize(
    ("refusal", "retry_after"),
    [
        (OverloadedError("many wait"), "1"),
        (DeadlineUnreachableError("late", retry_after_s=2.1), "3"),
        (DeadlineUnreachableError("late", retry_after_s=0.01), "1"),
        (DeadlineUnreachableError("always late"), None),
    ],
)
async def test_a_refusal_says_when_to_come_again(
    http: httpx.AsyncClient, backend: ScriptedBackend, refusal: OverloadedError, retry_after: str | None
) -> None:
    backend.refusal = refusal
    answer = await http.post("/v1/chat/completions", json=CHAT)
    assert (answer.status_code, answer.headers.get("Retry-After")) == (429, retry_after)
