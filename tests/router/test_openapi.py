"""The document of /openapi.json says what the code does: routes, keys, fields, values, errors."""

from __future__ import annotations

import warnings
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import BaseModel

from rtp_llm.errors import InvalidRequestError
from rtp_llm.router.access import Access
from rtp_llm.router.answer_routes import ANSWER_ROUTES
from rtp_llm.router.control_routes import CONTROL_ROUTES
from rtp_llm.router.ingress import build_ingress
from rtp_llm.router.openapi import REF
from rtp_llm.router.raw_body import RawBody
from rtp_llm.router.schemas import AnyBody, ChatBody, CompletionBody, parse_body
from rtp_llm.router.token_routes import TOKEN_ROUTES
from rtp_llm.sampling_params import FIELDS, Integer, Number, Optional
from tests.router.test_ingress import ADMINS, PROBES, ScriptedBackend, routes

BODIES: dict[str, type[BaseModel]] = {
    path: route.kind for table in (ANSWER_ROUTES, TOKEN_ROUTES, CONTROL_ROUTES) for path, route in table.items()
}


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend()


@pytest.fixture
def http(backend: ScriptedBackend) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=build_ingress(lambda: backend))
    return httpx.AsyncClient(transport=transport, base_url="http://router")


@pytest.fixture
async def document(http: httpx.AsyncClient) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = await http.get("/openapi.json")
    made: dict[str, Any] = answer.json()
    return made


def schema_of(document: dict[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    """With what it refers to beside it, so that it stands alone."""
    schemas = document["components"]["schemas"]
    return {**schemas[kind.__name__], "components": {"schemas": schemas}}


def takes(document: dict[str, Any], kind: type[BaseModel], content: Any) -> bool:
    return bool(Draft202012Validator(schema_of(document, kind)).is_valid(content))


def accepts(kind: type[Any], content: dict[str, Any]) -> bool:
    try:
        parse_body(kind, content).sampling({})
    except InvalidRequestError:
        return False
    return True


async def test_it_is_openapi(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    OpenAPIV31SpecValidator(document).validate()
    ids = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids))


async def test_every_route_is_there_with_the_key_that_opens_it(document: dict[str, Any]) -> None:
    described = {(method.upper(), path) for path, of in document["paths"].items() for method in of}
    assert described == {(method, path.replace(":path}", "}")) for method, path in routes()}
    for path, operations in document["paths"].items():
        key = [] if path in PROBES else [{"admin": []}] if path in ADMINS else [{"user": []}]
        assert all(operation["security"] == key for operation in operations.values()), path


async def test_it_needs_a_users_key(http: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.access = Access({"alice": "user-key"})
    assert (await http.get("/openapi.json")).status_code == 401
    assert (await http.get("/openapi.json", headers={"Authorization": "Bearer user-key"})).status_code == 200


async def test_every_field_that_a_body_may_have_is_there_and_no_other(document: dict[str, Any]) -> None:
    for path, kind in BODIES.items():
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body == {"$ref": REF + kind.__name__}
        known = kind.known_fields() if issubclass(kind, AnyBody) else kind.model_fields.keys()
        assert set(schema_of(document, kind)["properties"]) == set(known), path
    config = schema_of(document, RawBody)["properties"]["generate_config"]["anyOf"][0]
    assert {"max_new_tokens", "num_beams"} <= config["properties"].keys()
    posts = {path for path, of in document["paths"].items() if "requestBody" in of.get("post", {})}
    assert posts == BODIES.keys()


@pytest.mark.parametrize(
    ("kind", "content"),
    [(CompletionBody, {"prompt": "hi"}), (ChatBody, {"messages": [{"role": "user", "content": "hi"}]})],
)
async def test_limits_of_numbers_are_those_of_the_code(
    document: dict[str, Any], kind: type[Any], content: dict[str, Any]
) -> None:
    tried = 0
    for name, field in FIELDS.items():
        domain: Any = field.domain.domain if isinstance(field.domain, Optional) else field.domain
        if not isinstance(domain, Integer | Number) or kind.model_fields[name].annotation == bool | None:
            continue
        for value, good in (
            (domain.low, True),
            (domain.high, True),
            (domain.low - 1, False),
            (domain.high * 2 + 1, False),
        ):
            body = {**content, name: value}
            if name == "min_tokens":
                body["max_tokens"] = max(value, 1)
            assert takes(document, kind, {**content, name: value}) is good, (name, value)
            assert accepts(kind, body) is good, (name, value)
        tried += 1
    assert tried > 6


async def test_it_takes_what_clients_send_and_refuses_what_the_code_refuses(document: dict[str, Any]) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    raw = {"prompt": "hi", "generate_config": {"max_new_tokens": 4, "stop_words_list": [[5]]}}
    for kind, content, good in (
        (
            ChatBody,
            {**chat, "model": None, "stop": ["a"], "stream": True, "stream_options": {"include_usage": True}},
            True,
        ),
        (ChatBody, {**chat, "nobody_knows_it": 1}, True),
        (ChatBody, {**chat, "repetition_penalty": 1.0, "echo": False}, True),
        (ChatBody, {**chat, "echo": True}, False),
        (ChatBody, {**chat, "stop": [""]}, False),
        (ChatBody, {}, False),
        (CompletionBody, {"prompt": [[5, 6], [7]]}, True),
        (CompletionBody, {"prompt": 5}, False),
        (RawBody, raw, True),
        (RawBody, {**raw, "generate_config": {"num_beams": 4}}, False),
        (RawBody, {**raw, "generate_config": 5}, False),
    ):
        assert takes(document, kind, content) is good, content
        assert accepts(kind, content) is good, content


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/", "/v1/models/{name}", "/pause"])
async def test_errors_look_as_they_are_described(document: dict[str, Any], http: httpx.AsyncClient, path: str) -> None:
    [(method, operation)] = document["paths"][path].items()
    schema = operation["responses"]["default"]["content"]["application/json"]["schema"]
    answer = await http.request(method, path, json={"max_tokens": "x", "mode": 5})
    assert answer.status_code >= 400
    Draft202012Validator({**schema, "components": document["components"]}).validate(answer.json())
