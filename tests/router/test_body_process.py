"""Large bodies are read in a process of their own as small ones are here, and whatever happens to it is said."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rtp_llm.config import Config, load_config
from rtp_llm.directory import StaticMembership
from rtp_llm.errors import InvalidRequestError, OverloadedError, UnavailableError
from rtp_llm.router import body_process
from rtp_llm.router.body_process import BodyProcess
from rtp_llm.router.reading import Asked, BodyReader, BodyTooLargeError
from rtp_llm.router.schemas import Body, ChatBody, CompletionBody
from rtp_llm.router.service import LARGE_BODY_BYTES, Service
from rtp_llm.router.terms import NO_TERMS

pytestmark = pytest.mark.asyncio(loop_scope="module")

USER = {"role": "user", "content": "What is 23 + 58?"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
IGNORED = {"metadata": [{"a": [1, {}, "]"]}] * 20_000}

RIGHT: list[tuple[type[Body], dict[str, Any]]] = [
    (ChatBody, {"messages": [USER], "stream": True, "stream_options": {"include_usage": True}, "seed": 5, **IGNORED}),
    (ChatBody, {"messages": [USER], "tools": [TOOL], "temperature": 0.5, "max_tokens": 7, **IGNORED}),
    (CompletionBody, {"prompt": [[5, 6], [7]], "n": 2, "stop": ["a", "b"], "cache_salt": "s", **IGNORED}),
    (CompletionBody, {"prompt": [5.0, 6], "logprobs": 3, **IGNORED}),
    (CompletionBody, {"prompt": ["a b", "c"], **IGNORED}),
    (CompletionBody, {"prompt": [[7] * 2047] * 128}),
]
WRONG: list[tuple[type[Body], bytes]] = [
    (CompletionBody, b'{"prompt": [' + b"{}," * 60_000 + b"1]}"),
    (CompletionBody, b'{"prompt": [' + b"1," * 90_000 + b'"x"]}'),
    (CompletionBody, b'{"prompt": [' + b"5," * 90_000 + b"5]}"),
    (CompletionBody, b'{"prompt": "' + b"hello " * 50_000 + b'"}'),
    (CompletionBody, b'{"prompt": "a", "stop": ["' + b"x" * 1_000_000 + b'"]}'),
    (CompletionBody, b'{"prompt": "a", "stop_token_ids": [' + b'"x",' * 50_000 + b'"x"]}'),
    (CompletionBody, b'{"prompt": "a", "model": "other", "x": "' + b"x" * 200_000 + b'"}'),
    (ChatBody, b'{"messages": [' + b"1," * 90_000 + b"1]}"),
    (
        ChatBody,
        b'{"messages": [' + b'{"role": "user", "content": "a"},' * 60_000 + b'{"role": "user", "content": "a"}]}',
    ),
    (ChatBody, json.dumps({"messages": [{"role": "user", "content": {"a": "x" * 300_000}}]}).encode()),
    (ChatBody, json.dumps({"messages": [USER], "response_format": {"enum": ["a"] * 60_000}}).encode()),
    (ChatBody, b'{"messages": ' + b"[" * 500_000),
    (ChatBody, b'{"messages": [], "x": [' + b"1," * 90_000 + b"]}"),
    (ChatBody, b"[" + b"1," * 90_000 + b"1]"),
]


@cache
def config() -> Config:
    return load_config(environ={})


@cache
def reader() -> BodyReader:
    return BodyReader(config())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def process() -> AsyncIterator[BodyProcess]:
    process = BodyProcess(config(), timeout_s=60, memory_bytes=256 << 20)
    yield process
    await process.close()


def field(error: InvalidRequestError) -> str | None:
    """A list that is too long is named before its first wrong element."""
    return error.param and error.param.partition("[")[0]


async def small(process: BodyProcess) -> Asked:
    return await process.read(CompletionBody, b'{"prompt": [5]}')


@pytest.mark.parametrize(("kind", "body"), RIGHT, ids=lambda value: str(value)[:60])
async def test_it_asks_what_it_would_ask_read_here(
    process: BodyProcess, kind: type[Body], body: dict[str, Any]
) -> None:
    content = json.dumps(body).encode()
    there, here = await process.read(kind, content), reader().asked(reader().parsed(kind, content))
    assert [list(each) for each in there.prompts] == [list(each) for each in here.prompts]
    assert {**vars(there), "prompts": []} == {**vars(here), "prompts": []}


@pytest.mark.parametrize(("kind", "body"), WRONG, ids=lambda value: str(value)[:60])
async def test_what_is_wrong_is_named_in_few_words(process: BodyProcess, kind: type[Body], body: bytes) -> None:
    with pytest.raises(InvalidRequestError) as there:
        await process.read(kind, body)
    with pytest.raises(InvalidRequestError) as here:
        reader().asked(reader().parsed(kind, body))
    assert there.value.http_status == here.value.http_status
    assert field(there.value) == field(here.value)
    assert len(there.value.message) < 600 and len(here.value.message) < 600


async def test_it_outlives_tools_that_are_nested_too_deeply_to_be_handed_on(process: BodyProcess) -> None:
    """How deep that is depends on the Python."""
    await small(process)
    pid = process.pid
    deep = json.loads("[" * 700 + "]" * 700)
    tool = {**TOOL, "function": {"name": "f", "parameters": {"a": deep}}}
    body = json.dumps({"messages": [USER], "tools": [tool], **IGNORED}).encode()
    with contextlib.suppress(InvalidRequestError):
        await process.read(ChatBody, body)
    await small(process)
    assert process.pid == pid


async def test_who_was_killed_is_replaced(process: BodyProcess, caplog: pytest.LogCaptureFixture) -> None:
    await small(process)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    asked = asyncio.ensure_future(small(process))
    await asyncio.sleep(0)
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(UnavailableError, match="died"):
        await asked
    assert "died with status -9" in caplog.text
    assert list((await small(process)).prompts[0]) == [5]


async def test_what_takes_too_long_is_given_up(process: BodyProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    await small(process)
    first = process.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    monkeypatch.setattr(process, "_timeout_s", 0.05)
    with pytest.raises(UnavailableError, match=r"within 0\.05 s"):
        await small(process)
    monkeypatch.setattr(process, "_timeout_s", 60)
    assert list((await small(process)).prompts[0]) == [5] and process.pid != first


async def test_a_limited_number_waits_and_who_leaves_is_left_out(
    process: BodyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_process, "MAX_WAITING", 2)
    await small(process)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    running = asyncio.ensure_future(small(process))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting = [asyncio.ensure_future(small(process)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError, match="2 large bodies wait"):
        await small(process)
    for left in (running, waiting[0]):
        left.cancel()
    os.kill(process.pid, signal.SIGCONT)
    assert list((await waiting[1]).prompts[0]) == [5]
    assert list((await small(process)).prompts[0]) == [5]


async def test_memory_is_limited() -> None:
    process = BodyProcess(config(), timeout_s=60, memory_bytes=4 << 20)
    try:
        with pytest.raises(BodyTooLargeError, match="memory") as refused:
            await process.read(CompletionBody, json.dumps({"prompt": "é" * (4 << 20)}).encode())
        assert refused.value.http_status == 413
        assert list((await small(process)).prompts[0]) == [5]
    finally:
        await process.close()


async def test_it_ends_with_its_router() -> None:
    code = (
        "import asyncio, os\n"
        "from tests.router.test_body_process import BodyProcess, config, small\n"
        "async def main():\n"
        "    process = BodyProcess(config(), timeout_s=60, memory_bytes=64 << 20)\n"
        "    await small(process)\n"
        "    print(process.pid, flush=True)\n"
        "    os._exit(0)\n"
        "asyncio.run(main())\n"
    )
    ran = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True)
    pid = int(ran.stdout)
    for _ in range(2000):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":  # noqa: ASYNC240
                break
        except OSError:
            break
        await asyncio.sleep(0.01)
    else:
        raise AssertionError("it is still there")


def test_it_imports_none_of_the_large_libraries() -> None:
    code = (
        "import sys, rtp_llm.router.body_process\n"
        "print(sorted({'torch', 'transformers', 'ray', 'grpc', 'fastapi', 'rtp_llm._engine'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.strip() == "[]", ran.stderr


async def test_the_router_itself_never_parses_a_large_body(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(config(), StaticMembership())
    try:
        monkeypatch.setattr(service.reader, "parsed", None)
        monkeypatch.setattr(service.reader, "asked", None)
        body = json.dumps({"prompt": [[5] * 100] * 2, "x": "x" * LARGE_BODY_BYTES}).encode()
        question = await service.ask(CompletionBody, body, NO_TERMS)
        assert [prompt.num_tokens for prompt in question.prompts] == [100, 100]
    finally:
        await service.close()
