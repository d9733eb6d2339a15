"""A router whose workers say what a test writes down: all of it is real but them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import uvicorn

from rtp_llm.config import load_config
from rtp_llm.directory import StaticMembership
from rtp_llm.errors import RtpLlmError
from rtp_llm.request import FinishReason, Request, TokenOutput
from rtp_llm.router.ingress import build_ingress
from rtp_llm.router.service import Service
from tests.router.test_http10 import Server

LOGPROB = -0.5


class ScriptedService:
    """Made by `running`. `says`: texts of answers to come, an answer's error behind it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.service = Service(load_config(overrides=settings, environ={}), StaticMembership())
        self.service.dispatcher.generate = self._generate  # type: ignore[method-assign, assignment]
        self.says: list[str | RtpLlmError] = []
        self.prompts: list[str] = []  # that were answered
        self.app = build_ingress(lambda: self.service)
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app=self.app), base_url="http://router")

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, **settings: Any) -> AsyncIterator[ScriptedService]:
        running = cls(settings)
        try:
            yield running
        finally:
            await running.http.aclose()
            await running.service.close()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Its URL, for who comes by a socket."""
        listener = socket.create_server(("127.0.0.1", 0))
        server = Server(uvicorn.Config(self.app, lifespan="off", log_level="warning", access_log=False))
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = server.force_exit = True
            await serving

    async def _generate(self, request: Request, *_: object) -> AsyncIterator[list[TokenOutput]]:
        tokenizer = self.service.reader.tokenizer
        self.prompts.append(tokenizer.decode(request.prompt, skip_special_tokens=False))
        said = self.says.pop(0)
        assert isinstance(said, str)
        tokens = tokenizer.encode(said, add_special_tokens=False)
        [end, *_] = self.service.reader._defaults.eos_token_ids
        limit = request.sampling.max_tokens
        assert limit is not None
        for position, token in enumerate([*tokens, end][:limit]):
            finish = FinishReason.STOP if position == len(tokens) else FinishReason.NONE
            if position + 1 == limit and not finish:
                finish = FinishReason.LENGTH
            yield [TokenOutput(position, token, LOGPROB, [(token, LOGPROB)], finish, 0)]
            if self.says and isinstance(self.says[0], RtpLlmError) and position + 1 == len(tokens):
                raise self.says.pop(0)  # type: ignore[misc]
