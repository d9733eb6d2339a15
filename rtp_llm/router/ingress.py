"""The HTTP surface: routes, body limits, event streams. Knows requests and answers; nothing of workers."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, aclosing
from functools import cache
from typing import Any, Protocol, TypeAlias

import anyio
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.routing import Route
from starlette.types import ASGIApp

import rtp_llm
from rtp_llm.errors import (
    DeadlineUnreachableError,
    InvalidRequestError,
    RtpLlmError,
    UnavailableError,
    shortened,
)
from rtp_llm.model.answer_text import Delta
from rtp_llm.router import http10, openapi, spans
from rtp_llm.router.access import Access
from rtp_llm.router.account import RequestAccount, open_account
from rtp_llm.router.answer_routes import ANSWER_ROUTES, AnswerRoute
from rtp_llm.router.answers import Answers, Question
from rtp_llm.router.control_routes import Pools, add_control_routes
from rtp_llm.router.cors import Cors
from rtp_llm.router.event_stream import ClientWatch, EventStream
from rtp_llm.router.json_bytes import json_of
from rtp_llm.router.reading import BodyTooLargeError, ModelNotFoundError
from rtp_llm.router.response_routes import add_response_routes
from rtp_llm.router.response_store import ResponseStore
from rtp_llm.router.responses import error_body, error_object
from rtp_llm.router.schemas import Body
from rtp_llm.router.terms import Terms
from rtp_llm.router.token_bodies import TokenBody
from rtp_llm.router.token_routes import TOKEN_ROUTES, TokenRoute
from rtp_llm.router.writer import PING, ErrorBody, Form, Writer
from rtp_llm.tracing import Tracing, trace_id_of

log = logging.getLogger(__name__)

MAX_HEALTH_WAIT_S = 60.0
MAX_LENGTH_DIGITS = 20  # of a Content-Length; whatever has more is too large
Item: TypeAlias = "tuple[int, Delta] | None"  # of Answers.stream
ERROR_HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    408: {"Connection": "close"},
    429: {"Retry-After": "1"},
    503: {"Retry-After": "1"},
}


class Backend(Protocol):
    """What the surface stands on; `rtp_llm.router.service.Service` is the real one.

    Each method raises InvalidRequestError for what can never work.
    """

    @property
    def model_name(self) -> str: ...

    @property
    def model_names(self) -> Sequence[str]:
        """That requests may ask for; the first is `model_name`."""
        ...

    @property
    def max_model_len(self) -> int: ...

    @property
    def max_body_bytes(self) -> int: ...

    @property
    def upload_timeout_s(self) -> float: ...

    @property
    def ping_s(self) -> float: ...

    @property
    def cors_origins(self) -> list[str]: ...

    @property
    def session_header(self) -> str: ...

    def admission(self) -> AbstractContextManager[None]:
        """Around the reading of a request; raises OverloadedError when there are too many."""

    async def ask(self, kind: type[Body], body: bytes | bytearray, terms: Terms) -> Question:
        """`terms`: those of the headers. Raises OverloadedError when its answer can't begin in time."""

    async def tell(self, kind: type[TokenBody], body: bytes | bytearray, tenant: str) -> bytes:
        """JSON."""

    @property
    def responses(self) -> ResponseStore: ...

    @property
    def num_answers(self) -> int:
        """That this router makes, or that wait in it."""
        ...

    def server_info(self) -> dict[str, Any]:
        """The model and settings, no secret among them."""
        ...

    @property
    def least_workers(self) -> int:
        """With which it is ready."""
        ...

    async def wait_ready(self, timeout_s: float, num_workers: int) -> bool: ...

    async def metrics(self) -> bytes: ...

    def worker_status(self) -> dict[str, Any]: ...

    async def cache_status(self) -> dict[str, Any]: ...

    @property
    def access(self) -> Access: ...

    @property
    def tracing(self) -> Tracing | None:
        """None: nobody wants spans."""
        ...

    @property
    def pools(self) -> Pools: ...

    def check_health(self) -> None:
        """Raises when a background task has ended that this router can't do without."""

    def count(self, endpoint: str, status: int) -> None: ...


class UploadTimeoutError(InvalidRequestError):
    """The body stopped coming (`router.upload_timeout_s`)."""

    http_status = 408


class ContentTypeError(InvalidRequestError):
    """The body isn't declared to be plain JSON. Any web page may have a browser send other types here without asking first."""

    http_status = 415


def build_ingress(backend: Callable[[], Backend]) -> ASGIApp:
    """The app. `backend` is asked at each request: a Serve replica makes it after the app. Cors stands before all else, so that
    a page can read what went wrong, too. Every route but those that tell a prober of this router's health asks for a key."""
    app = FastAPI(title="rtp_llm", openapi_url=None, docs_url=None, redoc_url=None)
    http10.install()
    _answer_frameworks_errors(app)

    # Starlette's routes: FastAPI's read a request's parameters for 0.1 ms, and these take it as it is.
    for path, answering in ANSWER_ROUTES.items():
        app.add_route(path, _answering(backend, answering), methods=["POST"])
    for path, telling in TOKEN_ROUTES.items():
        app.add_route(path, _telling(backend, telling), methods=["POST"])

    add_response_routes(
        app, lambda http: backend().access.check_user(_authorization(http)), lambda: backend().responses
    )

    @app.get("/version", openapi_extra=openapi.OPEN)
    async def version() -> Response:
        return JSONResponse({"version": rtp_llm.__version__})

    @app.get("/ping", openapi_extra=openapi.OPEN)
    @app.post("/ping", openapi_extra=openapi.OPEN)
    async def ping() -> Response:
        """As /health: what SageMaker asks."""
        return await health()

    @app.get("/v1/models")
    async def models(http: HttpRequest) -> Response:
        backend().access.check_user(_authorization(http))
        names = backend().model_names
        return JSONResponse({"object": "list", "data": [_model_card(backend(), name) for name in names]})

    @app.get("/v1/models/{name:path}")
    async def model(http: HttpRequest, name: str) -> Response:
        backend().access.check_user(_authorization(http))
        if name not in backend().model_names:
            return _error_response(ModelNotFoundError.of(name, backend().model_name))
        return JSONResponse(_model_card(backend(), name))

    @app.get("/live", openapi_extra=openapi.OPEN)
    async def live() -> Response:
        """200 while this router works, with or without workers: where it doesn't, it is to be replaced."""
        backend().check_health()
        return JSONResponse({"status": "ok"})

    @app.get("/ready", openapi_extra=openapi.OPEN)
    async def ready() -> Response:
        """200 while a worker is connected: where none is, requests are better sent elsewhere, unless they bring one back."""
        return await health()

    @app.get("/health", openapi_extra=openapi.OPEN)
    async def health(wait_s: float = 0.0, workers: int | None = None) -> Response:
        """200 once so many workers are connected (one; none where autoscaling may have sent all away); waits up to `wait_s`."""
        for param, value, least in (("wait_s", wait_s, 0), ("workers", 1 if workers is None else workers, 1)):
            if not least <= value < math.inf:
                text = f"{param} must be a number from {least}, got {value}"
                return _error_response(InvalidRequestError(text, param=param, value=value))
        workers = backend().least_workers if workers is None else workers
        if not await backend().wait_ready(min(wait_s, MAX_HEALTH_WAIT_S), workers):
            few = "no worker is connected" if workers <= 1 else f"fewer than {workers} workers are connected"
            return _error_response(UnavailableError(few))
        return JSONResponse({"status": "ok"})

    @app.get("/openapi.json")
    async def document(http: HttpRequest) -> Response:
        """OpenAPI's document of all routes."""
        backend().access.check_user(_authorization(http))
        return Response(await asyncio.to_thread(described), media_type="application/json")

    users = len(app.routes)
    _add_admins_routes(app, backend)
    admins = {route.path for route in app.routes[users:] if isinstance(route, Route)}
    described = cache(lambda: json_of(openapi.document(app, admins)))
    return Cors(app, origins=lambda: backend().cors_origins)


def _add_admins_routes(app: FastAPI, backend: Callable[[], Backend]) -> None:
    def check(http: HttpRequest) -> None:
        backend().access.check_admin(_authorization(http))

    def check_control(http: HttpRequest) -> None:
        check(http)
        if http.method == "POST":
            _check_content_type(http)

    @app.get("/metrics")
    async def metrics(http: HttpRequest) -> Response:
        check(http)
        return PlainTextResponse(await backend().metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/load")
    async def load(http: HttpRequest) -> Response:
        """Answers that this router makes or that wait in it."""
        check(http)
        return JSONResponse({"server_load": backend().num_answers})

    async def server_info(http: HttpRequest) -> Response:
        check(http)
        return JSONResponse({"version": rtp_llm.__version__, **backend().server_info()})

    async def worker_status(http: HttpRequest) -> Response:
        check(http)
        return JSONResponse(backend().worker_status())

    async def cache_status(http: HttpRequest) -> Response:
        check(http)
        return JSONResponse(await backend().cache_status())

    for path in ("/server_info", "/get_server_info"):  # vLLM's, SGLang's
        app.add_route(path, server_info, methods=["GET"])
    for prefix in ("", "/rtp_llm"):  # RTP-LLM has both, and asks by either method
        app.add_route(f"{prefix}/worker_status", worker_status, methods=["GET", "POST"])
        app.add_route(f"{prefix}/cache_status", cache_status, methods=["GET", "POST"])
    add_control_routes(app, check_control, lambda: backend().pools)


def _answering(backend: Callable[[], Backend], route: AnswerRoute) -> Callable[[HttpRequest], Awaitable[Response]]:
    async def answer(http: HttpRequest) -> Response:
        return await _endpoint(http, backend(), route.kind, route.form)

    return answer


def _telling(backend: Callable[[], Backend], route: TokenRoute) -> Callable[[HttpRequest], Awaitable[Response]]:
    async def tell(http: HttpRequest) -> Response:
        return await _tell(http, backend(), route)

    return tell


def _answer_frameworks_errors(app: FastAPI) -> None:
    """What fails outside of an endpoint has OpenAI's shape too."""

    @app.exception_handler(HTTPException)
    async def no_such_route(http: HttpRequest, error: HTTPException) -> Response:
        text = f"{http.method} {http.url.path}: {error.detail}"
        return JSONResponse(error_object(error.status_code, text), status_code=error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def bad_query(http: HttpRequest, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        param = str(first["loc"][-1])
        text = f"{param}: {first['msg']}, got {shortened(first.get('input'))}"
        return JSONResponse(error_object(400, text, param), status_code=400)

    @app.exception_handler(RtpLlmError)
    async def refused(http: HttpRequest, error: RtpLlmError) -> Response:
        return _error_response(error)

    @app.exception_handler(Exception)
    async def unexpected(http: HttpRequest, error: Exception) -> Response:
        return _error_response(error)


async def _tell(http: HttpRequest, backend: Backend, route: TokenRoute) -> Response:
    """What a TokenBody gets."""
    try:
        tenant = backend.access.check_user(_authorization(http))
        _check_content_type(http)
        with backend.admission():
            body = await _read_body(http, backend.max_body_bytes, backend.upload_timeout_s)
            response = Response(await backend.tell(route.kind, body, tenant), media_type="application/json")
    except ClientDisconnect:
        response = Response(status_code=499)
    except Exception as error:
        if not isinstance(error, RtpLlmError):
            log.exception("%s failed", route.endpoint)
        response = _error_response(error, route.error_body)
    backend.count(route.endpoint, response.status_code)
    return response


async def _endpoint(http: HttpRequest, backend: Backend, kind: type[Body], form: Form) -> Response:
    account = open_account(http.headers.get("x-request-id", ""))
    _trace(http, backend, form, account)
    response, failure = None, ""
    try:
        account.tenant = backend.access.check_user(_authorization(http))
        _check_content_type(http)
        terms = Terms.of_headers(http.headers, backend.session_header, account.tenant)
        with ExitStack() as reading:
            reading.enter_context(backend.admission())
            body = await _read_body(http, backend.max_body_bytes, backend.upload_timeout_s)
            client = ClientWatch(http.receive)
            try:
                response = await client.during(_answer(backend, kind, body, terms, form, reading, account, client))
            finally:
                if not isinstance(response, EventStream):
                    client.stop()
    except ClientDisconnect:
        response = Response(status_code=499)
    except Exception as error:
        if not isinstance(error, RtpLlmError):
            log.exception("%s failed", form.endpoint)
        response, failure = _error_response(error, form.error_body), str(error)
    if not isinstance(response, EventStream):  # a stream counts when it ends
        _over(backend, form, account, response.status_code, failure)
    return response


def _trace(http: HttpRequest, backend: Backend, form: Form, account: RequestAccount) -> None:
    """Begin its span, in the client's trace if it names one."""
    traceparent = http.headers.get("traceparent", "")
    account.trace_id = trace_id_of(traceparent) if traceparent else ""
    if backend.tracing is not None:
        name = f"{spans.operation_of(form.endpoint)} {backend.model_name}"
        tracestate = ",".join(http.headers.getlist("tracestate"))
        account.trace = backend.tracing.begin(name, account.arrived, traceparent, tracestate)
        if account.trace is not None:
            account.trace_id = account.trace.trace_id


def _over(backend: Backend, form: Form, account: RequestAccount, status: int, failure: str) -> None:
    backend.count(form.endpoint, status)
    account.close(form.endpoint, status, failure)
    if account.trace is not None:
        spans.end(account.trace, account, form.endpoint, backend.model_name, status, failure)


def _authorization(http: HttpRequest) -> str | None:
    """As OpenAI's clients send it, or Anthropic's."""
    authorization, key = http.headers.get("authorization"), http.headers.get("x-api-key")
    return f"Bearer {key}" if authorization is None and key is not None else authorization


async def _answer(
    backend: Backend,
    kind: type[Body],
    body: bytearray,
    terms: Terms,
    form: Form,
    reading: ExitStack,
    account: RequestAccount,
    client: ClientWatch,
) -> Response:
    """`reading` ends when it is known what is asked."""
    question = await backend.ask(kind, body, terms)
    reading.close()
    return await _respond(form, question, backend, account, client)


def _check_content_type(http: HttpRequest) -> None:
    declared = http.headers.get("content-type", "")
    if declared.partition(";")[0].strip().lower() != "application/json":
        raise ContentTypeError(f"Content-Type must be application/json, got {shortened(declared)}", value=declared)
    coding = http.headers.get("content-encoding", "identity")
    if coding.strip().lower() != "identity":
        raise ContentTypeError(f"Content-Encoding must be identity, got {shortened(coding)}", value=coding)


async def _read_body(http: HttpRequest, limit: int, timeout_s: float) -> bytearray:
    """The whole body; between its parts a client may be silent for `timeout_s`. What is declared too large isn't waited for."""
    declared = http.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:MAX_LENGTH_DIGITS]) > limit:
        raise BodyTooLargeError(f"the body is larger than {limit} bytes: {shortened(declared)}", value=declared)
    body, more = bytearray(), True
    while more:
        try:
            with anyio.fail_after(timeout_s):  # no Task each, as wait_for would take
                message = await http.receive()
        except TimeoutError as error:
            raise UploadTimeoutError(
                f"nothing came for {timeout_s:g} s, {len(body)} bytes of the body are here"
            ) from error
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > limit:
            raise BodyTooLargeError(f"the body is larger than {limit} bytes", param=None, value=len(body))
    return body


async def _respond(
    form: Form, question: Question, backend: Backend, account: RequestAccount, client: ClientWatch
) -> Response:
    writer = form.writer(question.model or backend.model_name, question)
    answers = Answers(writer.id, question.prompts)
    if not question.stream:
        choices = await answers.collect()
        if question.return_timings:
            answers.usage.timings = account.timings()
        return Response(writer.whole(answers, choices), media_type="application/json")
    # What comes first decides the status: an error before it is a plain HTTP error. A silence is something, too.
    items = answers.stream(backend.ping_s)
    try:
        first = await anext(items)
    except BaseException:
        await items.aclose()
        raise
    return EventStream(_events(form, writer, answers, first, items, question, backend, account), client)


async def _events(
    form: Form,
    writer: Writer,
    answers: Answers,
    item: Item,
    rest: AsyncGenerator[Item, None],
    question: Question,
    backend: Backend,
    account: RequestAccount,
) -> AsyncGenerator[bytes, None]:
    """`item` and the rest as events; None is a ping. Counts the request by how it ends."""
    status, failure = 499, ""  # the client leaves before the end
    try:
        async with aclosing(rest):
            while True:
                for each in (PING,) if item is None else writer.events_of(answers, *item):
                    yield each
                try:
                    item = await anext(rest)
                except StopAsyncIteration:
                    break
        if question.return_timings:
            answers.usage.timings = account.timings()
        last = writer.last_events(answers)
        status = 200
    except Exception as error:
        if not isinstance(error, RtpLlmError):
            log.exception("stream %s failed", writer.id)
        status, failure = form.error_body(error)[0], str(error)
        last = writer.failed(error)
    finally:
        _over(backend, form, account, status, failure)
    for each in last:
        yield each


def _error_response(error: Exception, error_body: ErrorBody = error_body) -> JSONResponse:
    status, body = error_body(error)
    headers = ERROR_HEADERS.get(status)
    if isinstance(error, DeadlineUnreachableError):
        seconds = error.retry_after_s
        headers = None if seconds is None else {"Retry-After": str(max(math.ceil(seconds), 1))}
    return JSONResponse(body, status_code=status, headers=headers)


def _model_card(backend: Backend, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "rtp_llm",
        "root": backend.model_name,
        "max_model_len": backend.max_model_len,
    }
