"""What answers look like, as /openapi.json says it: bodies of status 200, and the data of streams' events.

Objects are closed where this server says all that they hold. tests/http/test_answer_schemas.py holds the answers of every route
against these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

Schema = dict[str, Any]

REF = "#/components/schemas/"
TEXT: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
ANY_OBJECT: Schema = {"type": "object"}
NULL: Schema = {"type": "null"}


def closed(optional: Mapping[str, Schema] | None = None, /, **required: Schema) -> Schema:
    """That has all of `required`, maybe some of `optional`, and no others."""
    properties = {**required, **(optional or {})}
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def const(value: Any) -> Schema:
    return {"const": value}


def one_of(*values: Any) -> Schema:
    return {"enum": list(values)}


def list_of(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def by_name(items: Schema) -> Schema:
    return {"type": "object", "additionalProperties": items}


def either(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def or_null(schema: Schema) -> Schema:
    return either(schema, NULL)


TIMINGS = {"timings": list_of(by_name(NUMBER))}  # where they were asked for

# --- OpenAI's completions and chats.

REASON = one_of("stop", "length", "tool_calls", "abort")
IDS = {"token_ids": list_of(COUNT)}  # with return_token_ids, as these
PROMPT_IDS = {"prompt_token_ids": list_of(COUNT)}
USAGE = closed(
    {"completion_tokens_details": closed(reasoning_tokens=COUNT), **TIMINGS},
    prompt_tokens=COUNT,
    completion_tokens=COUNT,
    total_tokens=COUNT,
    prompt_tokens_details=closed(cached_tokens=COUNT),
)
_NAMED = {"token": TEXT, "logprob": NUMBER, "bytes": list_of(COUNT)}
LOGPROB = closed(**_NAMED, top_logprobs=list_of(closed(**_NAMED)))
COMPLETION_LOGPROBS = or_null(
    closed(
        tokens=list_of(TEXT),
        token_logprobs=list_of(NUMBER),
        top_logprobs=list_of(by_name(NUMBER)),
        text_offset=list_of(COUNT),
    )
)
CHAT_LOGPROBS = or_null(closed(content=list_of(LOGPROB), refusal=NULL))
CALLED = closed(name=TEXT, arguments=TEXT)
CALL = closed(id=TEXT, type=const("function"), function=CALLED)
GROWN_CALL = either(
    closed(index=COUNT, id=TEXT, type=const("function"), function=CALLED),
    closed(index=COUNT, function=closed(arguments=TEXT)),
)
THOUGHT = {"reasoning_content": TEXT, "reasoning": TEXT}
MESSAGE = closed({**THOUGHT, "tool_calls": list_of(CALL)}, role=const("assistant"), content=or_null(TEXT), refusal=NULL)
DELTA = closed({"role": const("assistant"), "content": TEXT, **THOUGHT, "tool_calls": list_of(GROWN_CALL)})


def _head(kind: str) -> dict[str, Schema]:
    return {"id": TEXT, "object": const(kind), "created": COUNT, "model": TEXT}


def _openais(kind: str, choice: Schema) -> Schema:
    return closed(PROMPT_IDS, **_head(kind), choices=list_of(choice), usage=USAGE)


def _chunk(kind: str, choice: Schema) -> Schema:
    """The last one, with the usage alone, has no choices; an error is none."""
    made = closed({**PROMPT_IDS, "usage": or_null(USAGE)}, **_head(kind), choices=list_of(choice))
    return either(made, {"$ref": f"{REF}Error"})


def _completion(reason: Schema) -> Schema:
    return closed({**IDS, **PROMPT_IDS}, index=COUNT, text=TEXT, logprobs=COMPLETION_LOGPROBS, finish_reason=reason)


COMPLETION = _openais("text_completion", _completion(REASON))
COMPLETION_CHUNK = _chunk("text_completion", _completion(or_null(REASON)))
CHAT = _openais(
    "chat.completion",
    closed({**IDS, **PROMPT_IDS}, index=COUNT, message=MESSAGE, logprobs=CHAT_LOGPROBS, finish_reason=REASON),
)
CHAT_CHUNK = _chunk(
    "chat.completion.chunk",
    closed({**IDS, **PROMPT_IDS}, index=COUNT, delta=DELTA, logprobs=CHAT_LOGPROBS, finish_reason=or_null(REASON)),
)

# --- OpenAI's responses.

STATUS = one_of("completed", "incomplete", "in_progress")
OUTPUT_TEXT = closed(
    type=const("output_text"), text=TEXT, annotations={"type": "array", "maxItems": 0}, logprobs=list_of(LOGPROB)
)
REASONING_TEXT = closed(type=const("reasoning_text"), text=TEXT)
ITEM = either(
    closed(id=TEXT, type=const("message"), status=STATUS, role=const("assistant"), content=list_of(OUTPUT_TEXT)),
    closed(
        id=TEXT,
        type=const("reasoning"),
        status=STATUS,
        summary={"type": "array", "maxItems": 0},
        content=list_of(REASONING_TEXT),
    ),
    closed(id=TEXT, type=const("function_call"), status=STATUS, call_id=TEXT, name=TEXT, arguments=TEXT),
)
RESPONSE = closed(
    id=TEXT,
    object=const("response"),
    created_at=COUNT,
    completed_at=or_null(COUNT),
    status=one_of("completed", "incomplete", "in_progress", "failed"),
    model=TEXT,
    error=or_null(closed(code=one_of("rate_limit_exceeded", "server_error"), message=TEXT)),
    incomplete_details=or_null(closed(reason=one_of("max_output_tokens", "abort"))),
    store=BOOLEAN,
    usage=or_null(
        closed(
            TIMINGS,
            input_tokens=COUNT,
            input_tokens_details=closed(cached_tokens=COUNT, cache_write_tokens=const(0)),
            output_tokens=COUNT,
            output_tokens_details=closed(reasoning_tokens=COUNT),
            total_tokens=COUNT,
        )
    ),
    output=list_of(ITEM),
    # what was asked for
    background=const(False),
    instructions=or_null(TEXT),
    max_output_tokens=or_null(COUNT),
    max_tool_calls=or_null({"type": "integer"}),
    metadata=by_name(TEXT),
    parallel_tool_calls=BOOLEAN,
    previous_response_id=or_null(TEXT),
    prompt_cache_key=or_null(TEXT),
    safety_identifier=or_null(TEXT),
    service_tier=const("default"),
    text=closed(format=closed(type=const("text")), verbosity=const("medium")),
    tool_choice=one_of("auto", "none"),
    top_logprobs=COUNT,
    truncation=const("disabled"),
    user=or_null(TEXT),
    reasoning=closed(effort=or_null(TEXT), summary=NULL),
    tools=list_of(ANY_OBJECT),
    temperature=NUMBER,
    top_p=NUMBER,
)


def _response_events() -> Schema:
    item, part = (
        {"item_id": TEXT, "output_index": COUNT},
        {"item_id": TEXT, "output_index": COUNT, "content_index": COUNT},
    )
    fields: dict[str, dict[str, Schema]] = {
        **{
            f"response.{name}": {"response": {"$ref": f"{REF}ResponseObject"}}
            for name in ("created", "in_progress", "completed", "incomplete", "failed")
        },
        **{f"response.output_item.{name}": {"output_index": COUNT, "item": ITEM} for name in ("added", "done")},
        **{
            f"response.content_part.{name}": {**part, "part": either(OUTPUT_TEXT, REASONING_TEXT)}
            for name in ("added", "done")
        },
        "response.output_text.delta": {**part, "delta": TEXT, "logprobs": list_of(LOGPROB)},
        "response.output_text.done": {**part, "text": TEXT, "logprobs": list_of(LOGPROB)},
        "response.reasoning_text.delta": {**part, "delta": TEXT},
        "response.reasoning_text.done": {**part, "text": TEXT},
        "response.function_call_arguments.delta": {**item, "delta": TEXT},
        "response.function_call_arguments.done": {**item, "arguments": TEXT},
    }
    return either(*(closed(type=const(kind), sequence_number=COUNT, **each) for kind, each in fields.items()))


INPUT_ITEMS = closed(
    object=const("list"),
    first_id=or_null(TEXT),
    last_id=or_null(TEXT),
    has_more=BOOLEAN,
    data=list_of({"type": "object", "required": ["id", "type", "status"]}),
)

# --- Anthropic's messages.

STOP = {
    "stop_reason": one_of("end_turn", "max_tokens", "tool_use", "stop_sequence"),
    "stop_sequence": or_null(TEXT),
}
NOT_STOPPED = {"stop_reason": NULL, "stop_sequence": NULL}
ANTHROPIC_USAGE = closed(
    input_tokens=COUNT, cache_creation_input_tokens=const(0), cache_read_input_tokens=COUNT, output_tokens=COUNT
)
BLOCK = either(
    closed(type=const("text"), text=TEXT),
    closed(type=const("thinking"), thinking=TEXT, signature=const("")),
    closed(type=const("tool_use"), id=TEXT, name=TEXT, input={}),
)


def _message(stop: dict[str, Schema]) -> Schema:
    head = {"id": TEXT, "type": const("message"), "role": const("assistant"), "model": TEXT}
    return closed(**head, content=list_of(BLOCK), **stop, usage=ANTHROPIC_USAGE)


ANTHROPIC_MESSAGE = _message(STOP)
ANTHROPIC_EVENT = either(
    closed(type=const("message_start"), message=_message(NOT_STOPPED)),
    closed(type=const("content_block_start"), index=COUNT, content_block=BLOCK),
    closed(
        type=const("content_block_delta"),
        index=COUNT,
        delta=either(
            closed(type=const("text_delta"), text=TEXT),
            closed(type=const("thinking_delta"), thinking=TEXT),
            closed(type=const("input_json_delta"), partial_json=TEXT),
        ),
    ),
    closed(type=const("content_block_stop"), index=COUNT),
    closed(type=const("message_delta"), delta=closed(**STOP), usage=ANTHROPIC_USAGE),
    closed(type=const("message_stop")),
    {"$ref": f"{REF}AnthropicError"},
)

# --- RTP-LLM's raw requests.

_MS = ("cost_time", "wait_time", "first_token_cost_time")
_LENGTHS = (
    *("iter_count", "input_len", "prefix_len", "output_len", "step_output_len", "reuse_len", "local_reuse_len"),
    *("remote_reuse_len", "memory_reuse_len", "prefill_total_reuse_len", "prefill_local_reuse_len"),
    *("prefill_remote_reuse_len", "prefill_memory_reuse_len"),
)
AUX_INFO = either(
    closed(**dict.fromkeys(_MS, NUMBER), **dict.fromkeys(_LENGTHS, COUNT), pd_sep=BOOLEAN),
    closed(),  # of an answer that hasn't begun, or where it isn't wanted
)
RAW_ONE = closed(
    {"output_ids": list_of(list_of(COUNT)), "input_ids": list_of(list_of(COUNT))},
    response=either(TEXT, list_of(TEXT)),
    finished=BOOLEAN,
    aux_info=either(AUX_INFO, list_of(AUX_INFO)),
)
RAW = either(RAW_ONE, closed(response_batch=list_of(RAW_ONE)))
RAW_EVENT = either(RAW, {"$ref": f"{REF}RawError"})

# --- What is told.

MODEL = closed(
    id=TEXT, object=const("model"), created=const(0), owned_by=const("rtp_llm"), root=TEXT, max_model_len=COUNT
)
OK = closed(status=const("ok"))
RENDERED = closed(prompt=TEXT, prompt_token_ids=list_of(COUNT), count=COUNT)
INFO = closed(version=TEXT, model=TEXT, max_model_len=COUNT, config=ANY_OBJECT)
OPERATED = closed(status=const("ok"), workers=list_of(TEXT), lost=list_of(TEXT))

_NAME = {
    "worker": TEXT,
    "role": one_of("PREFILL", "DECODE"),
    "alive": BOOLEAN,
    "state": one_of("live", "draining", "connecting", "unreachable", "refused"),
    "address": TEXT,
    "epoch": or_null(TEXT),
    "protocol": or_null(COUNT),
}
_LOAD = (
    *("waiting_query_len", "running_query_len", "queued_tokens", "max_queued_tokens", "available_concurrency"),
    *("max_concurrency", "available_kv_cache", "total_kv_cache", "block_size", "max_seq_len", "age_ms"),
)
_CACHE = (
    *("available_kv_cache", "total_kv_cache", "block_size", "prefix_hit_tokens", "prompt_tokens_computed", "version"),
)


def _workers(**row: Schema) -> Schema:
    return closed(model=TEXT, router=TEXT, workers=list_of(closed(**_NAME, **row)))


WORKERS = _workers(**dict.fromkeys(_LOAD, or_null(COUNT)), step_latency_ms=or_null(NUMBER))
CACHES = _workers(**dict.fromkeys(_CACHE, or_null(COUNT)), blocks=or_null(by_name(COUNT)))
POOLS = closed(
    is_paused=BOOLEAN,
    number=COUNT,
    pools=by_name(closed(paused=one_of(None, "wait", "abort", "keep"), weights=or_null(TEXT), version=COUNT)),
)


class Shape(NamedTuple):
    """Of a route's answers; names are those of components."""

    name: str
    body: Schema
    event_name: str = ""
    event: Schema | None = None  # None: it doesn't stream


_STATUS = Shape("Status", OK)
_CHAT = Shape("ChatCompletion", CHAT, "ChatCompletionChunk", CHAT_CHUNK)
_RAW = Shape("RawAnswer", RAW, "RawEvent", RAW_EVENT)
_RESPONSE = Shape("ResponseObject", RESPONSE)
_INFO, _WORKERS, _CACHES = Shape("ServerInfo", INFO), Shape("WorkerStatus", WORKERS), Shape("CacheStatus", CACHES)
_RENDERED, _OPERATED = Shape("RenderedChat", RENDERED), Shape("Operated", OPERATED)

SHAPES: Mapping[str, Shape] = {  # by path
    "/v1/completions": Shape("Completion", COMPLETION, "CompletionChunk", COMPLETION_CHUNK),
    "/v1/chat/completions": _CHAT,
    "/v1/chat/completions/batch": _CHAT,
    "/v1/messages": Shape("AnthropicMessage", ANTHROPIC_MESSAGE, "AnthropicEvent", ANTHROPIC_EVENT),
    "/v1/responses": Shape("ResponseObject", RESPONSE, "ResponseEvent", _response_events()),
    "/": _RAW,
    "/batch_infer": Shape("RawAnswer", RAW),  # never streamed
    "/v1/responses/{id}": _RESPONSE,
    "/v1/responses/{id}/input_items": Shape("InputItems", INPUT_ITEMS),
    "/tokenize": Shape(
        "Tokenized",
        closed(count=COUNT, max_model_len=COUNT, tokens=list_of(COUNT), token_strs=or_null(list_of(TEXT))),
    ),
    "/detokenize": Shape("Detokenized", closed(prompt=TEXT)),
    "/tokenizer/encode": Shape(
        "Encoded",
        closed(
            {"offset_mapping": list_of({"type": "array", "items": COUNT, "minItems": 2, "maxItems": 2})},
            token_ids=list_of(COUNT),
            tokens=list_of(TEXT),
        ),
    ),
    "/v1/chat/render": _RENDERED,
    "/chat/render": _RENDERED,
    "/v1/messages/count_tokens": Shape("CountedTokens", closed(input_tokens=COUNT)),
    "/v1/responses/input_tokens": Shape(
        "InputTokens", closed(object=const("response.input_tokens"), input_tokens=COUNT)
    ),
    "/v1/models": Shape("Models", closed(object=const("list"), data=list_of(MODEL))),
    "/v1/models/{name}": Shape("Model", MODEL),
    "/version": Shape("Version", closed(version=TEXT)),
    "/ping": _STATUS,
    "/live": _STATUS,
    "/ready": _STATUS,
    "/health": _STATUS,
    "/openapi.json": Shape("OpenApi", {"type": "object", "required": ["openapi", "info", "paths", "components"]}),
    "/load": Shape("Load", closed(server_load=COUNT)),
    "/server_info": _INFO,
    "/get_server_info": _INFO,
    "/worker_status": _WORKERS,
    "/rtp_llm/worker_status": _WORKERS,
    "/cache_status": _CACHES,
    "/rtp_llm/cache_status": _CACHES,
    "/is_paused": Shape("Pools", POOLS),
    "/pause": _OPERATED,
    "/resume": _OPERATED,
    "/update_weights": Shape(
        "WeightsUpdated", closed(status=const("ok"), workers=list_of(TEXT), lost=list_of(TEXT), version=COUNT)
    ),
    "/reset_prefix_cache": Shape("CacheReset", closed(status=const("ok"), workers=list_of(TEXT))),
}
DELETED = Shape("ResponseDeleted", closed(id=TEXT, object=const("response.deleted"), deleted=const(True)))  # of DELETE


def shape_of(method: str, path: str) -> Shape | None:
    """None: no body of status 200 in JSON ever comes."""
    return DELETED if method == "DELETE" else SHAPES.get(path)
