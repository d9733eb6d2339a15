"""Cors: lets pages of other origins call from a browser, if the settings name their origin."""

from __future__ import annotations

from collections.abc import Callable

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send


class Cors:
    """Off without origins. They are asked for with the first request: Serve makes the app before it reads the settings."""

    def __init__(self, app: ASGIApp, origins: Callable[[], list[str]]) -> None:
        self._app = app
        self._origins = origins
        self._inner: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._inner is None and scope["type"] == "http":
            origins = self._origins()
            open_app = CORSMiddleware(self._app, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
            self._inner = open_app if origins else self._app
        await (self._inner or self._app)(scope, receive, send)
