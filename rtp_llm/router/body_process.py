"""The process that reads large bodies, one after the other: what parsing, rendering and tokenizing cost holds no event loop.

One a router, started with it and anew when it has died. Its life line is a socket: it ends when the router's end is closed.

    router ── kind, size, body ──▶ process
           ◀── size, pickle: References, if the body has any ──
              ── size, pickle: what they name, or the error ──▶
           ◀── size, pickle: what is asked, or the error ──
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import resource
import socket
import struct
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, overload

from rtp_llm.config import Config
from rtp_llm.errors import InvalidRequestError, OverloadedError, RtpLlmError, UnavailableError
from rtp_llm.router.answer_routes import ANSWER_ROUTES
from rtp_llm.router.reading import Asked, BodyReader, BodyTooLargeError
from rtp_llm.router.response_store import NO_REFERENCES, Recall, References, nothing_kept
from rtp_llm.router.schemas import Body
from rtp_llm.router.token_bodies import TokenBody
from rtp_llm.router.token_routes import TOKEN_ROUTES
from rtp_llm.within import within

log = logging.getLogger(__name__)

Kind: TypeAlias = "type[Body] | type[TokenBody]"
KINDS: tuple[Kind, ...] = (
    *dict.fromkeys(route.kind for route in ANSWER_ROUTES.values()),
    *dict.fromkeys(route.kind for route in TOKEN_ROUTES.values()),
)
HEAD = struct.Struct("!BQ")  # which of KINDS, bytes that follow
MAX_WAITING = 32  # bodies that wait for their turn
PIECE_BYTES = 256 << 10  # handed to the transport at once
NICENESS = 5  # streams come first


@dataclass
class _Job:
    kind: Kind
    body: bytes | bytearray
    recall: Recall
    asked: asyncio.Future[Any]


class BodyProcess:
    """The router's end. REQUIRES: one event loop.

    `memory_bytes`: what reading may take beyond what the process begins with.
    """

    def __init__(self, config: Config, *, timeout_s: float, memory_bytes: int) -> None:
        # Nothing secret goes there.
        self._setup = pickle.dumps((Config(model=config.model, router=config.router), memory_bytes))
        self._timeout_s = timeout_s
        self._jobs: deque[_Job] = deque()
        self._working: asyncio.Task[None] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Idempotent."""
        if self._process is not None:
            return
        self._socket, its = socket.socketpair()
        with its:
            code = f"import sys; sys.path[:] = {sys.path!r}; from rtp_llm.router.body_process import main; main({its.fileno()})"
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", code],
                stdin=subprocess.DEVNULL,
                pass_fds=[its.fileno()],
                env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
            )
        self._socket.sendall(HEAD.pack(0, len(self._setup)) + self._setup)  # small: the socket holds it

    async def close(self) -> None:
        for job in self._jobs:
            job.asked.cancel()
        self._jobs.clear()
        if self._working is not None:
            self._working.cancel()
            await asyncio.gather(self._working, return_exceptions=True)
        await self._end()

    @overload
    async def read(self, kind: type[Body], body: bytes | bytearray, recall: Recall = ...) -> Asked: ...

    @overload
    async def read(self, kind: type[TokenBody], body: bytes | bytearray, recall: Recall = ...) -> bytes: ...

    async def read(self, kind: Kind, body: bytes | bytearray, recall: Recall = nothing_kept) -> Asked | bytes:
        """What `body` asks, or the JSON that a TokenBody gets.

        Raises:
            InvalidRequestError: as BodyReader's, or `recall`'s.
            BodyTooLargeError: reading it takes too much memory.
            OverloadedError: too many wait for their turn.
            UnavailableError: reading it takes too long, or the process has died.
        """
        if len(self._jobs) >= MAX_WAITING:
            raise OverloadedError(f"{len(self._jobs)} large bodies wait to be read")
        job = _Job(kind, body, recall, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        answer: Asked | bytes = await job.asked
        return answer

    async def _work(self) -> None:
        """Until none waits. Who was cancelled before its turn is left out; who is cancelled in it is read to the end."""
        while self._jobs:
            job = self._jobs.popleft()
            if job.asked.done():
                continue
            try:
                answer: Asked | bytes | Exception = await within(self._timeout_s, self._exchange(job))
            except asyncio.TimeoutError:
                answer = UnavailableError(f"the body could not be read within {self._timeout_s:g} s")
                await self._end()
            except (OSError, asyncio.IncompleteReadError):
                status = await self._end()
                log.warning("the process that reads large bodies has died with status %s, a new one is started", status)
                answer = UnavailableError("the process that reads large bodies has died, and is started anew")
            except asyncio.CancelledError:
                job.asked.cancel()
                raise
            except Exception as error:
                await self._end()
                answer = error
            if job.asked.done():
                continue
            if isinstance(answer, Exception):
                job.asked.set_exception(answer)
            else:
                job.asked.set_result(answer)

    async def _exchange(self, job: _Job) -> Asked | bytes | Exception:
        self.start()
        if self._streams is None:
            self._streams = await asyncio.open_connection(sock=self._socket)
        answer: Asked | bytes | Exception | References = await self._said(job.kind, job.body, *self._streams)
        if isinstance(answer, References):
            answer = await self._said(job.kind, _recalled(job.recall, answer), *self._streams)
        assert not isinstance(answer, References)
        return answer

    @staticmethod
    async def _said(
        kind: Kind, text: bytes | bytearray, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Any:
        """What comes back for `text`."""
        writer.write(HEAD.pack(KINDS.index(kind), len(text)))
        for at in range(0, len(text), PIECE_BYTES):
            writer.write(memoryview(text)[at : at + PIECE_BYTES])
            await writer.drain()
        _, size = HEAD.unpack(await reader.readexactly(HEAD.size))
        return pickle.loads(await reader.readexactly(size))

    async def _end(self) -> int | None:
        """Kills it; its exit status. Idempotent."""
        process, ours, streams = self._process, self._socket, self._streams
        self._process = self._socket = self._streams = None
        if streams is not None:
            streams[1].transport.abort()
        elif ours is not None:
            ours.close()
        if process is None:
            return None
        process.kill()
        return await asyncio.to_thread(process.wait)


def _recalled(recall: Recall, names: References) -> bytes:
    """What they name, or the error, as the process takes it."""
    try:
        return pickle.dumps(recall(names))
    except InvalidRequestError as error:
        return pickle.dumps(error.with_traceback(None))


# --- The process itself.


def main(fd: int) -> None:
    """Until the socket `fd` is closed at the other end."""
    os.nice(NICENESS)
    with socket.socket(fileno=fd) as router, contextlib.suppress(OSError, EOFError):
        setup = _receive(router)[1]
        assert setup is not None
        config, memory_bytes = pickle.loads(setup)
        reader = BodyReader(config)
        _limit_memory(memory_bytes)
        while True:
            kind, body = _receive(router)
            _send(router, kind, _answer(reader, KINDS[kind], body, partial(_ask_router, router, kind)))
            del body


def _ask_router(router: socket.socket, kind: int, names: References) -> bytes:
    """A Recall."""
    if names == NO_REFERENCES:
        return b""
    _send(router, kind, names)
    told = _receive(router)[1]
    if told is None:
        raise MemoryError
    recalled: bytes | InvalidRequestError = pickle.loads(told)
    if isinstance(recalled, InvalidRequestError):
        raise recalled
    return recalled


def _send(router: socket.socket, kind: int, answer: Asked | bytes | RtpLlmError | References) -> None:
    try:
        text = pickle.dumps(answer)
    except RecursionError:  # tools are part of what is asked
        text = pickle.dumps(InvalidRequestError("the body is nested too deeply"))
    router.sendall(HEAD.pack(kind, len(text)))
    router.sendall(text)


def _answer(reader: BodyReader, kind: Kind, body: bytearray | None, recall: Recall) -> Asked | bytes | RtpLlmError:
    if body is None:
        return BodyTooLargeError("there is no memory for the body")
    try:
        typed: Body | TokenBody = reader.parsed_piecewise(kind, body, recall)
        return typed.told(reader) if isinstance(typed, TokenBody) else reader.asked(typed)
    except InvalidRequestError as error:
        error.value = None  # may be as large as the body
        return error.with_traceback(None)
    except MemoryError:
        return BodyTooLargeError("reading the body takes too much memory")
    except RtpLlmError as error:
        return error.with_traceback(None)
    except Exception:
        log.exception("a body could not be read")
        return RtpLlmError("internal error")


def _receive(router: socket.socket) -> tuple[int, bytearray | None]:
    """(kind, body); None: there is no memory for it."""
    kind, size = HEAD.unpack(_exactly(router, bytearray(HEAD.size)))
    try:
        return kind, _exactly(router, bytearray(size))
    except MemoryError:
        for at in range(0, size, PIECE_BYTES):
            _exactly(router, bytearray(min(PIECE_BYTES, size - at)))
        return kind, None


def _exactly(router: socket.socket, body: bytearray) -> bytearray:
    """`body`, filled."""
    view = memoryview(body)
    while view:
        if not (received := router.recv_into(view)):
            raise EOFError
        view = view[received:]
    return body


def _limit_memory(more_bytes: int) -> None:
    """Of this process: what it has and `more_bytes`; beyond it allocations fail."""
    with open("/proc/self/statm") as statm:
        has = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + more_bytes, resource.RLIM_INFINITY))
