from rtp_llm.wire.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SenderMessage(_message.Message):
    __slots__ = ("hello", "heartbeat", "reserve", "commit", "abort", "sender_epoch", "receiver_epoch")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    RESERVE_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    SENDER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    hello: PeerHello
    heartbeat: SenderHeartbeat
    reserve: Reserve
    commit: Commit
    abort: Abort
    sender_epoch: int
    receiver_epoch: int
    def __init__(self, hello: _Optional[_Union[PeerHello, _Mapping]] = ..., heartbeat: _Optional[_Union[SenderHeartbeat, _Mapping]] = ..., reserve: _Optional[_Union[Reserve, _Mapping]] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ..., abort: _Optional[_Union[Abort, _Mapping]] = ..., sender_epoch: _Optional[int] = ..., receiver_epoch: _Optional[int] = ...) -> None: ...

class ReceiverMessage(_message.Message):
    __slots__ = ("hello", "refused", "heartbeat", "granted", "no_room", "committed", "expired", "bad_checksum", "fenced", "sender_epoch", "receiver_epoch")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    NO_ROOM_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    BAD_CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    FENCED_FIELD_NUMBER: _ClassVar[int]
    SENDER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    hello: PeerHello
    refused: _types_pb2.Refused
    heartbeat: ReceiverHeartbeat
    granted: Granted
    no_room: NoRoom
    committed: PeerCommitted
    expired: Expired
    bad_checksum: BadChecksum
    fenced: PeerFenced
    sender_epoch: int
    receiver_epoch: int
    def __init__(self, hello: _Optional[_Union[PeerHello, _Mapping]] = ..., refused: _Optional[_Union[_types_pb2.Refused, _Mapping]] = ..., heartbeat: _Optional[_Union[ReceiverHeartbeat, _Mapping]] = ..., granted: _Optional[_Union[Granted, _Mapping]] = ..., no_room: _Optional[_Union[NoRoom, _Mapping]] = ..., committed: _Optional[_Union[PeerCommitted, _Mapping]] = ..., expired: _Optional[_Union[Expired, _Mapping]] = ..., bad_checksum: _Optional[_Union[BadChecksum, _Mapping]] = ..., fenced: _Optional[_Union[PeerFenced, _Mapping]] = ..., sender_epoch: _Optional[int] = ..., receiver_epoch: _Optional[int] = ...) -> None: ...

class PeerHello(_message.Message):
    __slots__ = ("protocol_version", "worker", "layout_fingerprint", "layout_json", "numerics_id", "transport_address", "transport_nonce", "expected", "max_model_len", "newest_protocol")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_JSON_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_ID_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_NONCE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    NEWEST_PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    worker: _types_pb2.WorkerKey
    layout_fingerprint: str
    layout_json: str
    numerics_id: str
    transport_address: bytes
    transport_nonce: int
    expected: _types_pb2.WorkerKey
    max_model_len: int
    newest_protocol: int
    def __init__(self, protocol_version: _Optional[int] = ..., worker: _Optional[_Union[_types_pb2.WorkerKey, _Mapping]] = ..., layout_fingerprint: _Optional[str] = ..., layout_json: _Optional[str] = ..., numerics_id: _Optional[str] = ..., transport_address: _Optional[bytes] = ..., transport_nonce: _Optional[int] = ..., expected: _Optional[_Union[_types_pb2.WorkerKey, _Mapping]] = ..., max_model_len: _Optional[int] = ..., newest_protocol: _Optional[int] = ...) -> None: ...

class SenderHeartbeat(_message.Message):
    __slots__ = ("sequence", "grants")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    GRANTS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    grants: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, sequence: _Optional[int] = ..., grants: _Optional[_Iterable[int]] = ...) -> None: ...

class ReceiverHeartbeat(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    def __init__(self, sequence: _Optional[int] = ...) -> None: ...

class Reserve(_message.Message):
    __slots__ = ("key", "request", "output", "given_up")
    KEY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    GIVEN_UP_FIELD_NUMBER: _ClassVar[int]
    key: _types_pb2.Key
    request: _types_pb2.Request
    output: _containers.RepeatedScalarFieldContainer[int]
    given_up: int
    def __init__(self, key: _Optional[_Union[_types_pb2.Key, _Mapping]] = ..., request: _Optional[_Union[_types_pb2.Request, _Mapping]] = ..., output: _Optional[_Iterable[int]] = ..., given_up: _Optional[int] = ...) -> None: ...

class Granted(_message.Message):
    __slots__ = ("key", "grant", "prefix_tokens", "lease_seconds")
    KEY_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    PREFIX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    key: _types_pb2.Key
    grant: int
    prefix_tokens: int
    lease_seconds: float
    def __init__(self, key: _Optional[_Union[_types_pb2.Key, _Mapping]] = ..., grant: _Optional[int] = ..., prefix_tokens: _Optional[int] = ..., lease_seconds: _Optional[float] = ...) -> None: ...

class NoRoom(_message.Message):
    __slots__ = ("key", "reason")
    KEY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    key: _types_pb2.Key
    reason: str
    def __init__(self, key: _Optional[_Union[_types_pb2.Key, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("key", "grant", "first", "bytes", "checksum")
    KEY_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    key: _types_pb2.Key
    grant: int
    first: _types_pb2.SampledToken
    bytes: int
    checksum: int
    def __init__(self, key: _Optional[_Union[_types_pb2.Key, _Mapping]] = ..., grant: _Optional[int] = ..., first: _Optional[_Union[_types_pb2.SampledToken, _Mapping]] = ..., bytes: _Optional[int] = ..., checksum: _Optional[int] = ...) -> None: ...

class PeerCommitted(_message.Message):
    __slots__ = ("key", "grant")
    KEY_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    key: _types_pb2.Key
    grant: int
    def __init__(self, key: _Optional[_Union[_types_pb2.Key, _Mapping]] = ..., grant: _Optional[int] = ...) -> None: ...

class Expired(_message.Message):
    __slots__ = ("key", "grant")
    KEY_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    key: _types_pb2.Key
    grant: int
    def __init__(self, key: _Optional[_Union[_types_pb2.Key, _Mapping]] = ..., grant: _Optional[int] = ...) -> None: ...

class BadChecksum(_message.Message):
    __slots__ = ("key", "grant", "expected", "found")
    KEY_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    key: _types_pb2.Key
    grant: int
    expected: int
    found: int
    def __init__(self, key: _Optional[_Union[_types_pb2.Key, _Mapping]] = ..., grant: _Optional[int] = ..., expected: _Optional[int] = ..., found: _Optional[int] = ...) -> None: ...

class PeerFenced(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: _types_pb2.Key
    def __init__(self, key: _Optional[_Union[_types_pb2.Key, _Mapping]] = ...) -> None: ...

class Abort(_message.Message):
    __slots__ = ("key", "grant")
    KEY_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    key: _types_pb2.Key
    grant: int
    def __init__(self, key: _Optional[_Union[_types_pb2.Key, _Mapping]] = ..., grant: _Optional[int] = ...) -> None: ...
