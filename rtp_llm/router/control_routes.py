"""The administrators' routes: pause, resume, other weights, an empty prefix cache."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Protocol, TypeVar

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request as HttpRequest

from rtp_llm.config import Pool
from rtp_llm.errors import InvalidRequestError, shortened
from rtp_llm.pool_state import PauseMode


class Pools(Protocol):
    """As PoolControl does it."""

    def status(self) -> dict[str, Any]: ...

    async def pause(self, pools: Collection[Pool], mode: PauseMode, timeout_s: float | None) -> dict[str, Any]: ...

    async def resume(self, pools: Collection[Pool]) -> dict[str, Any]: ...

    async def update_weights(
        self, pools: Collection[Pool], directory: str, mode: PauseMode | None, timeout_s: float | None
    ) -> dict[str, Any]: ...

    async def reset_prefix_cache(self, pools: Collection[Pool]) -> dict[str, Any]: ...


class ResumeBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    pool: Pool | None = None  # default: all

    @property
    def pools(self) -> list[Pool]:
        return list(Pool) if self.pool is None else [self.pool]


class PauseBody(ResumeBody):
    mode: PauseMode = PauseMode.WAIT
    timeout_s: float | None = Field(None, gt=0, le=86400)


class UpdateWeightsBody(ResumeBody):
    path: str = Field(min_length=1)
    mode: PauseMode | None = None
    timeout_s: float | None = Field(None, gt=0, le=86400)


BodyT = TypeVar("BodyT", bound=ResumeBody)


def add_control_routes(app: FastAPI, check: Callable[[HttpRequest], None], pools: Callable[[], Pools]) -> None:
    """`check(http)` raises unless it is an administrator's, and no page of another origin sends it unasked."""

    async def pause(http: HttpRequest) -> Response:
        check(http)
        body = await _body(http, PauseBody)
        return JSONResponse(await pools().pause(body.pools, body.mode, body.timeout_s))

    async def resume(http: HttpRequest) -> Response:
        check(http)
        body = await _body(http, ResumeBody)
        return JSONResponse(await pools().resume(body.pools))

    async def update_weights(http: HttpRequest) -> Response:
        check(http)
        body = await _body(http, UpdateWeightsBody)
        if not body.path.startswith("/"):
            raise InvalidRequestError(
                f"path must be absolute, the same on each worker's host, got {body.path!r:.200}", param="path"
            )
        return JSONResponse(await pools().update_weights(body.pools, body.path, body.mode, body.timeout_s))

    async def reset_prefix_cache(http: HttpRequest) -> Response:
        check(http)
        body = await _body(http, ResumeBody)
        return JSONResponse(await pools().reset_prefix_cache(body.pools))

    async def is_paused(http: HttpRequest) -> Response:
        check(http)
        return JSONResponse(pools().status())

    app.add_route("/pause", pause, methods=["POST"])
    app.add_route("/resume", resume, methods=["POST"])
    app.add_route("/update_weights", update_weights, methods=["POST"])
    app.add_route("/reset_prefix_cache", reset_prefix_cache, methods=["POST"])
    app.add_route("/is_paused", is_paused, methods=["GET"])


async def _body(http: HttpRequest, kind: type[BodyT]) -> BodyT:
    """An empty one has the defaults.

    Raises:
        InvalidRequestError: names field and value.
    """
    try:
        return kind.model_validate_json(await http.body() or b"{}")
    except ValidationError as error:
        first = error.errors()[0]
        param = ".".join(map(str, first["loc"])) or None
        text = f"{param or 'body'}: {first['msg']}, got {shortened(first.get('input'))}"
        raise InvalidRequestError(text, param=param) from error
