"""The document of /openapi.json: what routes there are and what bodies may hold, from what the code itself checks with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.routing import Route

import rtp_llm
from rtp_llm.router import anthropic_writer, raw_writer, responses
from rtp_llm.router.answer_routes import ANSWER_ROUTES
from rtp_llm.router.answer_schemas import REF, TEXT, Schema, closed, shape_of
from rtp_llm.router.control_routes import CONTROL_ROUTES
from rtp_llm.router.response_routes import QUERIES
from rtp_llm.router.schemas import AnyBody, sampling_field_of
from rtp_llm.router.token_routes import TOKEN_ROUTES
from rtp_llm.router.writer import ErrorBody
from rtp_llm.sampling_params import (
    Choice,
    Domain,
    Flag,
    Integer,
    Number,
    Only,
    Optional,
    OrElse,
    Texts,
    TokenIds,
    TokenNumbers,
)

OPEN: Schema = {"security": []}  # of a route that asks for no key
EVENT = "x-event-data"  # of text/event-stream: the schema of an event's data, as OpenAPI 3.2 says it by itemSchema

_OPENAIS = closed(message=TEXT, type=TEXT, param={"type": ["string", "null"]}, code={"type": ["string", "integer"]})
ERRORS: Mapping[ErrorBody, tuple[str, Schema]] = {  # name and schema of an error as an endpoint writes it
    responses.error_body: ("Error", closed(error=_OPENAIS)),
    anthropic_writer.error_body: (
        "AnthropicError",
        closed(type={"const": "error"}, error=closed(type=TEXT, message=TEXT)),
    ),
    raw_writer.error_body: ("RawError", closed(error_code={"type": "integer"}, error_code_str=TEXT, message=TEXT)),
}


def document(app: FastAPI, admins: Collection[str]) -> Schema:
    """Of all routes of `app`; those at `admins` are an administrator's."""
    made: Schema = get_openapi(title="rtp_llm", version=rtp_llm.__version__, openapi_version="3.1.0", routes=app.routes)
    schemas: dict[str, Schema] = dict(ERRORS.values())
    paths: dict[str, Schema] = made["paths"]
    for route in app.routes:
        if isinstance(route, Route):
            own = paths.setdefault(route.path_format, {})
            for method in sorted((route.methods or set()) - {"HEAD"}):
                operation = own.setdefault(method.lower(), _operation(route, method))
                _complete(operation, route, method, schemas, is_admins=route.path in admins)
    keys = {name: {"type": "http", "scheme": "bearer"} for name in ("user", "admin")}
    made["components"] = {"schemas": schemas, "securitySchemes": keys}
    return made


def _operation(route: Route, method: str) -> Schema:
    """Of a route that FastAPI doesn't know."""
    names = route.param_convertors
    parameters = [{"name": name, "in": "path", "required": True, "schema": TEXT} for name in names]
    parameters += [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in QUERIES.get((method, route.path), {}).items()
    ]
    return {"parameters": parameters} if parameters else {}


def _complete(operation: Schema, route: Route, method: str, schemas: dict[str, Schema], *, is_admins: bool) -> None:
    words = route.path_format.replace("{", "").replace("}", "").strip("/").replace("/", "_").replace(".", "_")
    operation["operationId"] = f"{method.lower()}_{words or 'raw'}"
    operation.setdefault("security", [{"admin": []}] if is_admins else [{"user": []}])
    body = None
    error_body: ErrorBody = responses.error_body
    if method == "POST":
        if (answering := ANSWER_ROUTES.get(route.path)) is not None:
            body, error_body = _body_of(answering.kind, schemas), answering.form.error_body
        elif (telling := TOKEN_ROUTES.get(route.path)) is not None:
            body, error_body = _body_of(telling.kind, schemas), telling.error_body
        elif (control := CONTROL_ROUTES.get(route.path)) is not None:
            body = _named(control.kind.__name__, _plain(control.kind, schemas), schemas)
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    content: dict[str, Schema] = {}
    if route.path == "/metrics":
        content["text/plain"] = {"schema": TEXT}
    elif (shape := shape_of(method, route.path_format)) is not None:
        content["application/json"] = {"schema": _named(shape.name, shape.body, schemas)}
        if shape.event is not None:
            content["text/event-stream"] = {"schema": TEXT, EVENT: _named(shape.event_name, shape.event, schemas)}
    failed = {
        "description": "error",
        "content": {"application/json": {"schema": {"$ref": REF + ERRORS[error_body][0]}}},
    }
    answered = {"200": {"description": "OK", "content": content}} if content else {}
    operation["responses"] = {**answered, "default": failed}


def _body_of(kind: type[AnyBody], schemas: dict[str, Schema]) -> Schema:
    return _named(kind.__name__, body_schema(kind, schemas), schemas)


def _named(name: str, schema: Schema, schemas: dict[str, Schema]) -> Schema:
    schemas[name] = schema
    return {"$ref": REF + name}


def body_schema(kind: type[AnyBody], schemas: dict[str, Schema]) -> Schema:
    """Of the fields that are looked at. What these refer to is put into `schemas`."""
    known, properties, required = kind.known_fields(), dict[str, Schema](), set[str]()
    tables = list(kind.refused_tables())
    for model in reversed(kind.typed_by()):
        plain = _plain(model, schemas)
        properties |= plain["properties"]
        required |= set(plain.get("required", ()))
        for name in model.model_fields:
            if (field := sampling_field_of(model, name)) is not None:
                properties[name] = _or_null(_of_domain(field.domain))
        if issubclass(model, AnyBody) and model is not kind:
            tables += model.refused_tables()
    own = {name for model in kind.typed_by() for name in model.model_fields}
    for table in tables:
        properties |= {name: _neutral(values) for name, values in table.items() if name not in own}
    properties = {name: schema for name, schema in sorted(properties.items()) if name in known}
    for name in kind.nests:
        properties[name] = _or_null({"type": "object", "properties": dict(properties)})
    made: Schema = {"type": "object", "properties": properties}
    return made | ({"required": sorted(required & known)} if required & known else {})


def _plain(model: type[BaseModel], schemas: dict[str, Schema]) -> Schema:
    """As pydantic has it, null allowed where it means that a field is not given."""
    made = model.model_json_schema(ref_template=REF + "{model}")
    schemas.update(made.pop("$defs", {}))
    return made


def _neutral(values: tuple[Any, ...]) -> Schema:
    return {"enum": [None, *values], "description": "other values are refused"}


def _or_null(schema: Schema) -> Schema:
    null = {"type": "null"}
    there = None in schema.get("enum", ()) or null in schema.get("anyOf", ())
    return schema if there else {"anyOf": [schema, null]}


def _of_domain(domain: Domain) -> Schema:
    return next(of(domain) for kind, of in DOMAINS.items() if isinstance(domain, kind))


def _texts(domain: Any) -> Schema:
    text = {"type": "string", "minLength": 1, "maxLength": domain.longest}
    return {"anyOf": [text, {"type": "array", "items": text, "maxItems": domain.most}]}


def _token_ids(domain: Any) -> Schema:
    items = {"type": "integer", "minimum": 0}
    return {"type": "array", "items": items, "minItems": domain.least, "maxItems": domain.most}


def _token_numbers(domain: Any) -> Schema:
    names = {"type": "string", "pattern": "^[0-9]{1,10}$"}
    return {
        "type": "object",
        "propertyNames": names,
        "additionalProperties": _of_domain(domain.number),
        "maxProperties": domain.most,
    }


DOMAINS: Mapping[type[Any], Callable[[Any], Schema]] = {
    Integer: lambda domain: {"type": "integer", "minimum": domain.low, "maximum": domain.high},
    Number: lambda domain: {"type": "number", "minimum": domain.low, "maximum": domain.high},
    OrElse: lambda domain: {"anyOf": [{"const": domain.value}, _of_domain(domain.domain)]},
    Choice: lambda domain: {"enum": list(domain.texts)},
    Flag: lambda domain: {"type": "boolean"},
    Texts: _texts,
    TokenIds: _token_ids,
    TokenNumbers: _token_numbers,
    Optional: lambda domain: _or_null(_of_domain(domain.domain)),
    Only: lambda domain: _neutral(domain.values),
}
