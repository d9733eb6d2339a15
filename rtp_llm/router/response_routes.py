"""Routes of responses that are kept: shown, deleted, and what they were made from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from starlette.requests import Request as HttpRequest

from rtp_llm.errors import InvalidRequestError, shortened
from rtp_llm.router.json_bytes import json_of, listed, with_fields
from rtp_llm.router.response_store import KeptResponse, ResponseStore
from rtp_llm.router.schemas import must_be

MAX_LISTED = 100  # items of one page
LISTED = 20
QUERIES: Mapping[tuple[str, str], dict[str, Any]] = MappingProxyType(  # (method, path) → schemas of its query
    {
        ("GET", "/v1/responses/{id}"): {"stream": {"enum": ["false"]}},
        ("GET", "/v1/responses/{id}/input_items"): {
            "limit": {"type": "integer", "minimum": 1, "maximum": MAX_LISTED, "default": LISTED},
            "order": {"enum": ["asc", "desc"], "default": "desc"},
            "after": {"type": "string"},
        },
    }
)
# (tenant, store, what it keeps for the tenant under the id of the path, request) → answer
Handler = Callable[[str, ResponseStore, KeptResponse, HttpRequest], Response]


def add_response_routes(app: FastAPI, check: Callable[[HttpRequest], str], store: Callable[[], ResponseStore]) -> None:
    """`check`: the tenant; raises AccessError."""

    def of(handler: Handler) -> Callable[[HttpRequest], Awaitable[Response]]:
        async def handle(http: HttpRequest) -> Response:
            tenant = check(http)
            return handler(tenant, store(), store().find(tenant, http.path_params["id"]), http)

        return handle

    for path, method, handler in (
        ("/v1/responses/{id}", "GET", _shown),
        ("/v1/responses/{id}", "DELETE", _deleted),
        ("/v1/responses/{id}/input_items", "GET", _input_items),
        ("/v1/responses/{id}/cancel", "POST", _cancelled),
    ):
        app.add_route(path, of(handler), methods=[method])


def _shown(tenant: str, store: ResponseStore, response: KeptResponse, http: HttpRequest) -> Response:
    if (stream := http.query_params.get("stream", "false")).lower() != "false":
        raise InvalidRequestError(
            f"stream is not supported for a response that is whole, got {shortened(stream)}",
            param="stream",
            value=stream,
        )
    return Response(response.body, media_type="application/json")


def _deleted(tenant: str, store: ResponseStore, response: KeptResponse, http: HttpRequest) -> Response:
    store.delete(tenant, response.id)
    return JSONResponse({"id": response.id, "object": "response.deleted", "deleted": True})


def _input_items(tenant: str, store: ResponseStore, response: KeptResponse, http: HttpRequest) -> Response:
    """A page of them."""
    asked = http.query_params
    limit, order, after = asked.get("limit", str(LISTED)), asked.get("order", "desc"), asked.get("after")
    if not (limit.isascii() and limit.isdecimal() and len(limit) <= 3 and 1 <= int(limit) <= MAX_LISTED):
        raise must_be("limit", f"a number from 1 to {MAX_LISTED}", limit)
    if order not in ("asc", "desc"):
        raise must_be("order", "asc or desc", order)
    items = response.answered
    if order == "desc":
        items.reverse()
    begin = 0
    if after is not None:
        begin = 1 + next((at for at, (id, _) in enumerate(items) if id == after), -1)
        if not begin:
            raise must_be("after", "the id of an input item", after)
    page = items[begin : begin + int(limit)]
    about: dict[str, Any] = {
        "object": "list",
        "first_id": page[0][0] if page else None,
        "last_id": page[-1][0] if page else None,
        "has_more": begin + len(page) < len(items),
    }
    body = with_fields(json_of(about), data=listed(text for _, text in page))
    return Response(body, media_type="application/json")


def _cancelled(tenant: str, store: ResponseStore, response: KeptResponse, http: HttpRequest) -> Response:
    raise InvalidRequestError(f"response {response.id} can't be cancelled: it was not made in the background")
