from rtp_llm.wire.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AttachRole(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ATTACH_UNSPECIFIED: _ClassVar[AttachRole]
    ATTACH_SENDER: _ClassVar[AttachRole]
    ATTACH_RECEIVER: _ClassVar[AttachRole]
    ATTACH_ALONE: _ClassVar[AttachRole]
ATTACH_UNSPECIFIED: AttachRole
ATTACH_SENDER: AttachRole
ATTACH_RECEIVER: AttachRole
ATTACH_ALONE: AttachRole

class EndedWorkersNotice(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    def __init__(self, digest: _Optional[bytes] = ...) -> None: ...

class EndedWorkersReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RouterMessage(_message.Message):
    __slots__ = ("hello", "heartbeat", "submit", "cancel", "fence", "attach", "draining_acknowledged", "watch_cache", "router_epoch", "worker_epoch")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    ATTACH_FIELD_NUMBER: _ClassVar[int]
    DRAINING_ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    WATCH_CACHE_FIELD_NUMBER: _ClassVar[int]
    ROUTER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    WORKER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    hello: RouterHello
    heartbeat: Heartbeat
    submit: Submit
    cancel: Cancel
    fence: Fence
    attach: Attach
    draining_acknowledged: DrainingAcknowledged
    watch_cache: WatchCache
    router_epoch: int
    worker_epoch: int
    def __init__(self, hello: _Optional[_Union[RouterHello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., submit: _Optional[_Union[Submit, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., fence: _Optional[_Union[Fence, _Mapping]] = ..., attach: _Optional[_Union[Attach, _Mapping]] = ..., draining_acknowledged: _Optional[_Union[DrainingAcknowledged, _Mapping]] = ..., watch_cache: _Optional[_Union[WatchCache, _Mapping]] = ..., router_epoch: _Optional[int] = ..., worker_epoch: _Optional[int] = ...) -> None: ...

class WorkerMessage(_message.Message):
    __slots__ = ("hello", "heartbeat", "outputs", "busy", "released", "failed", "committed", "fenced", "load", "draining", "refused", "cache_snapshot", "cache_events", "started", "router_epoch", "worker_epoch")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    FENCED_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    CACHE_SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    CACHE_EVENTS_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    ROUTER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    WORKER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    hello: WorkerHello
    heartbeat: Heartbeat
    outputs: Outputs
    busy: Busy
    released: Released
    failed: Failed
    committed: Committed
    fenced: Fenced
    load: Load
    draining: Draining
    refused: _types_pb2.Refused
    cache_snapshot: CacheSnapshot
    cache_events: CacheEvents
    started: Started
    router_epoch: int
    worker_epoch: int
    def __init__(self, hello: _Optional[_Union[WorkerHello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., outputs: _Optional[_Union[Outputs, _Mapping]] = ..., busy: _Optional[_Union[Busy, _Mapping]] = ..., released: _Optional[_Union[Released, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ..., committed: _Optional[_Union[Committed, _Mapping]] = ..., fenced: _Optional[_Union[Fenced, _Mapping]] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., draining: _Optional[_Union[Draining, _Mapping]] = ..., refused: _Optional[_Union[_types_pb2.Refused, _Mapping]] = ..., cache_snapshot: _Optional[_Union[CacheSnapshot, _Mapping]] = ..., cache_events: _Optional[_Union[CacheEvents, _Mapping]] = ..., started: _Optional[_Union[Started, _Mapping]] = ..., router_epoch: _Optional[int] = ..., worker_epoch: _Optional[int] = ...) -> None: ...

class RouterHello(_message.Message):
    __slots__ = ("protocol_version", "router_id", "expected", "newest_protocol")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    NEWEST_PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    router_id: str
    expected: _types_pb2.WorkerKey
    newest_protocol: int
    def __init__(self, protocol_version: _Optional[int] = ..., router_id: _Optional[str] = ..., expected: _Optional[_Union[_types_pb2.WorkerKey, _Mapping]] = ..., newest_protocol: _Optional[int] = ...) -> None: ...

class WorkerHello(_message.Message):
    __slots__ = ("protocol_version", "worker", "pool", "model", "model_digest", "layout_fingerprint", "numerics_id", "max_model_len", "block_tokens", "peer_address", "newest_protocol")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PEER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    NEWEST_PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    worker: _types_pb2.WorkerKey
    pool: str
    model: str
    model_digest: str
    layout_fingerprint: str
    numerics_id: str
    max_model_len: int
    block_tokens: int
    peer_address: str
    newest_protocol: int
    def __init__(self, protocol_version: _Optional[int] = ..., worker: _Optional[_Union[_types_pb2.WorkerKey, _Mapping]] = ..., pool: _Optional[str] = ..., model: _Optional[str] = ..., model_digest: _Optional[str] = ..., layout_fingerprint: _Optional[str] = ..., numerics_id: _Optional[str] = ..., max_model_len: _Optional[int] = ..., block_tokens: _Optional[int] = ..., peer_address: _Optional[str] = ..., newest_protocol: _Optional[int] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    def __init__(self, sequence: _Optional[int] = ...) -> None: ...

class Submit(_message.Message):
    __slots__ = ("key", "request", "output", "receiver", "receiver_address", "alone", "solo")
    KEY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ALONE_FIELD_NUMBER: _ClassVar[int]
    SOLO_FIELD_NUMBER: _ClassVar[int]
    key: _types_pb2.Key
    request: _types_pb2.Request
    output: _containers.RepeatedScalarFieldContainer[int]
    receiver: _types_pb2.WorkerKey
    receiver_address: str
    alone: bool
    solo: bool
    def __init__(self, key: _Optional[_Union[_types_pb2.Key, _Mapping]] = ..., request: _Optional[_Union[_types_pb2.Request, _Mapping]] = ..., output: _Optional[_Iterable[int]] = ..., receiver: _Optional[_Union[_types_pb2.WorkerKey, _Mapping]] = ..., receiver_address: _Optional[str] = ..., alone: bool = ..., solo: bool = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: _types_pb2.Key
    def __init__(self, key: _Optional[_Union[_types_pb2.Key, _Mapping]] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: _types_pb2.Key
    def __init__(self, key: _Optional[_Union[_types_pb2.Key, _Mapping]] = ...) -> None: ...

class Fence(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: _types_pb2.Key
    def __init__(self, key: _Optional[_Union[_types_pb2.Key, _Mapping]] = ...) -> None: ...

class AttachEntry(_message.Message):
    __slots__ = ("key", "next_position", "role")
    KEY_FIELD_NUMBER: _ClassVar[int]
    NEXT_POSITION_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    key: _types_pb2.Key
    next_position: int
    role: AttachRole
    def __init__(self, key: _Optional[_Union[_types_pb2.Key, _Mapping]] = ..., next_position: _Optional[int] = ..., role: _Optional[_Union[AttachRole, str]] = ...) -> None: ...

class Attach(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[AttachEntry]
    def __init__(self, entries: _Optional[_Iterable[_Union[AttachEntry, _Mapping]]] = ...) -> None: ...

class Outputs(_message.Message):
    __slots__ = ("request", "choice", "attempt", "position", "token", "finish", "logprob", "top", "cached_tokens", "times")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    request: _containers.RepeatedScalarFieldContainer[int]
    choice: _containers.RepeatedScalarFieldContainer[int]
    attempt: _containers.RepeatedScalarFieldContainer[int]
    position: _containers.RepeatedScalarFieldContainer[int]
    token: _containers.RepeatedScalarFieldContainer[int]
    finish: _containers.RepeatedScalarFieldContainer[_types_pb2.FinishReason]
    logprob: _containers.RepeatedScalarFieldContainer[float]
    top: _containers.RepeatedCompositeFieldContainer[TopLogprobs]
    cached_tokens: _containers.RepeatedScalarFieldContainer[int]
    times: _containers.RepeatedCompositeFieldContainer[_types_pb2.FirstTimes]
    def __init__(self, request: _Optional[_Iterable[int]] = ..., choice: _Optional[_Iterable[int]] = ..., attempt: _Optional[_Iterable[int]] = ..., position: _Optional[_Iterable[int]] = ..., token: _Optional[_Iterable[int]] = ..., finish: _Optional[_Iterable[_Union[_types_pb2.FinishReason, str]]] = ..., logprob: _Optional[_Iterable[float]] = ..., top: _Optional[_Iterable[_Union[TopLogprobs, _Mapping]]] = ..., cached_tokens: _Optional[_Iterable[int]] = ..., times: _Optional[_Iterable[_Union[_types_pb2.FirstTimes, _Mapping]]] = ...) -> None: ...

class TopLogprobs(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[_types_pb2.TopLogprob]
    def __init__(self, entries: _Optional[_Iterable[_Union[_types_pb2.TopLogprob, _Mapping]]] = ...) -> None: ...

class Busy(_message.Message):
    __slots__ = ("key", "queued_tokens", "limit")
    KEY_FIELD_NUMBER: _ClassVar[int]
    QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    key: _types_pb2.Key
    queued_tokens: int
    limit: int
    def __init__(self, key: _Optional[_Union[_types_pb2.Key, _Mapping]] = ..., queued_tokens: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class Released(_message.Message):
    __slots__ = ("key", "reason")
    KEY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    key: _types_pb2.Key
    reason: str
    def __init__(self, key: _Optional[_Union[_types_pb2.Key, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("key", "type", "message", "param")
    KEY_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PARAM_FIELD_NUMBER: _ClassVar[int]
    key: _types_pb2.Key
    type: str
    message: str
    param: str
    def __init__(self, key: _Optional[_Union[_types_pb2.Key, _Mapping]] = ..., type: _Optional[str] = ..., message: _Optional[str] = ..., param: _Optional[str] = ...) -> None: ...

class Committed(_message.Message):
    __slots__ = ("key", "times")
    KEY_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    key: _types_pb2.Key
    times: _types_pb2.ArrivalTimes
    def __init__(self, key: _Optional[_Union[_types_pb2.Key, _Mapping]] = ..., times: _Optional[_Union[_types_pb2.ArrivalTimes, _Mapping]] = ...) -> None: ...

class Fenced(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: _types_pb2.Key
    def __init__(self, key: _Optional[_Union[_types_pb2.Key, _Mapping]] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("queued_tokens", "waiting", "running", "blocks_free", "max_queued_tokens", "block_tokens", "slots", "slots_of_others", "blocks_total", "step")
    QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FREE_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_OF_OTHERS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    queued_tokens: int
    waiting: int
    running: int
    blocks_free: int
    max_queued_tokens: int
    block_tokens: int
    slots: int
    slots_of_others: int
    blocks_total: int
    step: StepSample
    def __init__(self, queued_tokens: _Optional[int] = ..., waiting: _Optional[int] = ..., running: _Optional[int] = ..., blocks_free: _Optional[int] = ..., max_queued_tokens: _Optional[int] = ..., block_tokens: _Optional[int] = ..., slots: _Optional[int] = ..., slots_of_others: _Optional[int] = ..., blocks_total: _Optional[int] = ..., step: _Optional[_Union[StepSample, _Mapping]] = ...) -> None: ...

class StepSample(_message.Message):
    __slots__ = ("decode_rows", "context_tokens", "prefill_rows", "attention_pairs", "seconds")
    DECODE_ROWS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_ROWS_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_PAIRS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    decode_rows: int
    context_tokens: int
    prefill_rows: int
    attention_pairs: int
    seconds: float
    def __init__(self, decode_rows: _Optional[int] = ..., context_tokens: _Optional[int] = ..., prefill_rows: _Optional[int] = ..., attention_pairs: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class Draining(_message.Message):
    __slots__ = ("round", "pause", "ended")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PAUSE_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    round: int
    pause: str
    ended: bool
    def __init__(self, round: _Optional[int] = ..., pause: _Optional[str] = ..., ended: bool = ...) -> None: ...

class DrainingAcknowledged(_message.Message):
    __slots__ = ("round",)
    ROUND_FIELD_NUMBER: _ClassVar[int]
    round: int
    def __init__(self, round: _Optional[int] = ...) -> None: ...

class WatchCache(_message.Message):
    __slots__ = ("next",)
    NEXT_FIELD_NUMBER: _ClassVar[int]
    next: int
    def __init__(self, next: _Optional[int] = ...) -> None: ...

class CacheSnapshot(_message.Message):
    __slots__ = ("number", "hashes")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    number: int
    hashes: bytes
    def __init__(self, number: _Optional[int] = ..., hashes: _Optional[bytes] = ...) -> None: ...

class CacheEvents(_message.Message):
    __slots__ = ("first", "events")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    first: int
    events: bytes
    def __init__(self, first: _Optional[int] = ..., events: _Optional[bytes] = ...) -> None: ...

class MetricsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MetricsReply(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: bytes
    def __init__(self, text: _Optional[bytes] = ...) -> None: ...

class PoolState(_message.Message):
    __slots__ = ("weights", "version", "pause")
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PAUSE_FIELD_NUMBER: _ClassVar[int]
    weights: str
    version: int
    pause: str
    def __init__(self, weights: _Optional[str] = ..., version: _Optional[int] = ..., pause: _Optional[str] = ...) -> None: ...

class ApplicationState(_message.Message):
    __slots__ = ("number", "base", "prefill", "decode")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    number: int
    base: str
    prefill: PoolState
    decode: PoolState
    def __init__(self, number: _Optional[int] = ..., base: _Optional[str] = ..., prefill: _Optional[_Union[PoolState, _Mapping]] = ..., decode: _Optional[_Union[PoolState, _Mapping]] = ...) -> None: ...

class ControlRequest(_message.Message):
    __slots__ = ("operation", "check_weights", "state", "timeout_s", "last")
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    CHECK_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    operation: int
    check_weights: str
    state: ApplicationState
    timeout_s: float
    last: bool
    def __init__(self, operation: _Optional[int] = ..., check_weights: _Optional[str] = ..., state: _Optional[_Union[ApplicationState, _Mapping]] = ..., timeout_s: _Optional[float] = ..., last: bool = ...) -> None: ...

class ResetPrefixCacheRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResetPrefixCacheReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ControlReply(_message.Message):
    __slots__ = ("error", "message", "state")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    error: str
    message: str
    state: ApplicationState
    def __init__(self, error: _Optional[str] = ..., message: _Optional[str] = ..., state: _Optional[_Union[ApplicationState, _Mapping]] = ...) -> None: ...
