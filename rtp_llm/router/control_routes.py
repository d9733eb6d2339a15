"""The administrators' routes: pause, resume, other weights, an empty prefix cache."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol, TypeVar

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


async def _pause(pools: Pools, body: Any) -> dict[str, Any]:
    return await pools.pause(body.pools, body.mode, body.timeout_s)


async def _resume(pools: Pools, body: Any) -> dict[str, Any]:
    return await pools.resume(body.pools)


async def _update_weights(pools: Pools, body: Any) -> dict[str, Any]:
    if not body.path.startswith("/"):
        raise InvalidRequestError(
            f"path must be absolute, the same on each worker's host, got {body.path!r:.200}", param="path"
        )
    return await pools.update_weights(body.pools, body.path, body.mode, body.timeout_s)


async def _reset_prefix_cache(pools: Pools, body: Any) -> dict[str, Any]:
    return await pools.reset_prefix_cache(body.pools)


class ControlRoute(NamedTuple):
    kind: type[ResumeBody]
    carry_out: Callable[[Pools, Any], Awaitable[dict[str, Any]]]  # what a body of `kind` asks


CONTROL_ROUTES: Final[Mapping[str, ControlRoute]] = MappingProxyType(
    {
        "/pause": ControlRoute(PauseBody, _pause),
        "/resume": ControlRoute(ResumeBody, _resume),
        "/update_weights": ControlRoute(UpdateWeightsBody, _update_weights),
        "/reset_prefix_cache": ControlRoute(ResumeBody, _reset_prefix_cache),
    }
)


def add_control_routes(app: FastAPI, check: Callable[[HttpRequest], None], pools: Callable[[], Pools]) -> None:
    """`check(http)` raises unless it is an administrator's, and no page of another origin sends it unasked."""

    def controlling(route: ControlRoute) -> Callable[[HttpRequest], Awaitable[Response]]:
        async def control(http: HttpRequest) -> Response:
            check(http)
            return JSONResponse(await route.carry_out(pools(), await _body(http, route.kind)))

        return control

    async def is_paused(http: HttpRequest) -> Response:
        check(http)
        return JSONResponse(pools().status())

    for path, route in CONTROL_ROUTES.items():
        app.add_route(path, controlling(route), methods=["POST"])
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
