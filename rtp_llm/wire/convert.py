"""Messages ↔ the package's objects."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from rtp_llm import errors
from rtp_llm.config import Pool
from rtp_llm.errors import InvalidRequestError, ProtocolError, RtpLlmError
from rtp_llm.pool_state import ApplicationState, PauseMode, PoolState
from rtp_llm.request import FinishReason, Request, TokenOutput
from rtp_llm.wire.key import RequestKey, WorkerKey
from rtp_llm.wire.v1 import router_pb2, types_pb2

_FINISH_REASONS: dict[int, FinishReason] = {int(reason): reason for reason in FinishReason}


class TokenColumns(Protocol):
    """Columns of equal length, one row a token: what an engine publishes once a step. Each is read once."""

    @property
    def router_epoch(self) -> Sequence[int]: ...
    @property
    def request(self) -> Sequence[int]: ...
    @property
    def choice(self) -> Sequence[int]: ...
    @property
    def attempt(self) -> Sequence[int]: ...
    @property
    def position(self) -> Sequence[int]: ...
    @property
    def token(self) -> Sequence[int]: ...
    @property
    def logprob(self) -> Sequence[float]: ...  # NaN: not asked for
    @property
    def finish(self) -> Sequence[int]: ...
    @property
    def num_cached_tokens(self) -> Sequence[int]: ...
    @property
    def times(self) -> Sequence[tuple[float, float]]: ...  # queued, prefill; zero: not the first
    @property
    def top_logprobs(self) -> Sequence[Sequence[tuple[int, float]]]: ...


def key_message(key: RequestKey) -> types_pb2.Key:
    return types_pb2.Key(router_epoch=key[0], request=key[1], choice=key[2], attempt=key[3])


def key_of(message: types_pb2.Key) -> RequestKey:
    return RequestKey(message.router_epoch, message.request, message.choice, message.attempt)


def worker_message(worker: WorkerKey) -> types_pb2.WorkerKey:
    return types_pb2.WorkerKey(id=worker.id, epoch=worker.epoch)


def worker_of(message: types_pb2.WorkerKey) -> WorkerKey:
    return WorkerKey(message.id, message.epoch)


def request_message(request: Request) -> types_pb2.Request:
    """REQUIRES: seed and max_tokens are set (the router draws and resolves them). Stop strings, n and detokenization are the
    router's own; `choice` and `output` travel beside the request."""
    sampling = request.sampling
    if sampling.seed is None or sampling.max_tokens is None:
        raise ProtocolError(
            f"request {request.request_id}: seed {sampling.seed}, max_tokens {sampling.max_tokens} unset"
        )
    return types_pb2.Request(
        request_id=request.request_id,
        prompt=request.prompt,
        sampling=types_pb2.SamplingParams(**sampling.for_engine()),
        cache_salt=request.cache_salt,
        priority=request.priority,
        traceparent=request.traceparent,
        tracestate=request.tracestate,
    )


def submit_message(
    key: RequestKey,
    request: Request,
    output: Sequence[int],
    receiver: WorkerKey | None,
    receiver_address: str,
    *,
    solo: bool = False,
) -> router_pb2.RouterMessage:
    """`output`: tokens so far. `receiver` None: alone. `solo`: in steps of its own. REQUIRES: as request_message."""
    submit = router_pb2.Submit(
        key=key_message(key),
        request=request_message(request),
        output=output,
        alone=receiver is None,
        receiver=None if receiver is None else worker_message(receiver),
        receiver_address=receiver_address,
        solo=solo,
    )
    return router_pb2.RouterMessage(submit=submit)


def cancel_message(key: RequestKey) -> router_pb2.RouterMessage:
    return router_pb2.RouterMessage(cancel=router_pb2.Cancel(key=key_message(key)))


def fence_message(key: RequestKey) -> router_pb2.RouterMessage:
    return router_pb2.RouterMessage(fence=router_pb2.Fence(key=key_message(key)))


def attach_message(entries: Iterable[tuple[RequestKey, int, int]]) -> router_pb2.RouterMessage:
    """`entries`: (key, next position, number of the wire's AttachRole)."""
    attach = router_pb2.Attach(
        entries=[
            router_pb2.AttachEntry(
                key=key_message(key), next_position=next_position, role=router_pb2.AttachRole.Name(role)
            )
            for key, next_position, role in entries
        ]
    )
    return router_pb2.RouterMessage(attach=attach)


def outputs_by_router(columns: TokenColumns) -> dict[int, router_pb2.Outputs]:
    """One columnar message per router epoch, rows in the columns' order. A column that no row of it needs stays empty."""
    rows_of: dict[int, list[int]] = {}
    for row, epoch in enumerate(columns.router_epoch):
        rows_of.setdefault(epoch, []).append(row)
    request, choice, attempt = columns.request, columns.choice, columns.attempt
    position, token, finish = columns.position, columns.token, columns.finish
    logprob, top, cached = columns.logprob, columns.top_logprobs, columns.num_cached_tokens
    times = columns.times
    messages = {}
    for epoch, rows in rows_of.items():
        messages[epoch] = router_pb2.Outputs(
            request=[request[row] for row in rows],
            choice=[choice[row] for row in rows],
            attempt=[attempt[row] for row in rows],
            position=[position[row] for row in rows],
            token=[token[row] for row in rows],
            finish=[finish[row] for row in rows],  # type: ignore[misc]
            logprob=[] if all(math.isnan(logprob[row]) for row in rows) else [logprob[row] for row in rows],
            top=[top_message(top[row]) for row in rows] if any(top[row] for row in rows) else [],
            cached_tokens=[cached[row] for row in rows] if any(cached[row] for row in rows) else [],
            times=[times_message(*times[row]) for row in rows] if any(times[row][1] for row in rows) else [],
        )
    return messages


def times_message(queued: float, prefill: float) -> types_pb2.FirstTimes:
    return types_pb2.FirstTimes(queued=queued, prefill=prefill)


def _times_of(message: types_pb2.FirstTimes) -> tuple[float, float] | None:
    """
    Raises:
        ProtocolError: one is no time.
    """
    times = _checked((message.queued, message.prefill), "outputs: times {} of a first token")
    return times if message.prefill else None


def arrival_times_of(message: router_pb2.Committed) -> tuple[float, float] | None:
    """Seconds on the wire and of verifying; None: its receiver doesn't say.

    Raises:
        ProtocolError: one is no time.
    """
    if not message.HasField("times"):
        return None
    return _checked((message.times.wire, message.times.verify), "committed: times {} of its KV")


def _checked(times: tuple[float, float], text: str) -> tuple[float, float]:
    if not all(0 <= each < math.inf for each in times):
        raise ProtocolError(text.format(times))
    return times


def top_message(top: Sequence[tuple[int, float]]) -> router_pb2.TopLogprobs:
    return router_pb2.TopLogprobs(entries=[types_pb2.TopLogprob(token=token, logprob=value) for token, value in top])


def outputs_of(message: router_pb2.Outputs, router_epoch: int) -> Iterator[tuple[RequestKey, TokenOutput]]:
    """
    Raises:
        ProtocolError: the columns have unequal lengths, a row ends for a reason that there isn't, or has no token unless it
            failed.
    """
    rows = len(message.request)
    for name in ("choice", "attempt", "position", "token", "finish"):
        if len(getattr(message, name)) != rows:
            raise ProtocolError(f"outputs: column {name} has {len(getattr(message, name))} rows, request has {rows}")
    for name in ("logprob", "top", "cached_tokens", "times"):
        if len(getattr(message, name)) not in (0, rows):
            raise ProtocolError(f"outputs: column {name} has {len(getattr(message, name))} rows, request has {rows}")
    for row, (token, number) in enumerate(zip(message.token, message.finish, strict=True)):
        finish = _FINISH_REASONS.get(number)
        if finish is None:
            raise ProtocolError(f"outputs: finish {number} of row {row} is no reason that there is")
        if (token < 0) != (finish is FinishReason.FAILED):
            raise ProtocolError(f"outputs: token {token} of row {row} with finish {finish.name}")
        logprob = message.logprob[row] if message.logprob else math.nan
        yield (
            RequestKey(router_epoch, message.request[row], message.choice[row], message.attempt[row]),
            TokenOutput(
                message.position[row],
                token,
                None if math.isnan(logprob) else logprob,
                [(entry.token, entry.logprob) for entry in message.top[row].entries] if message.top else (),
                finish,
                message.cached_tokens[row] if message.cached_tokens else 0,
                _times_of(message.times[row]) if message.times else None,
            ),
        )


def application_state_message(state: ApplicationState) -> router_pb2.ApplicationState:
    def of(pool: Pool) -> router_pb2.PoolState:
        each = state.of(pool)
        return router_pb2.PoolState(weights=each.weights, version=each.version, pause=each.pause or "")

    return router_pb2.ApplicationState(
        number=state.number, base=state.base, prefill=of(Pool.PREFILL), decode=of(Pool.DECODE)
    )


def application_state_of(message: router_pb2.ApplicationState) -> ApplicationState:
    """
    Raises:
        ProtocolError: a pause mode that this version doesn't know.
    """

    def of(pool: router_pb2.PoolState) -> PoolState:
        return PoolState(weights=pool.weights, version=pool.version, pause=pause_of(pool.pause))

    return ApplicationState(
        number=message.number, base=message.base, prefill=of(message.prefill), decode=of(message.decode)
    )


def pause_of(text: str) -> PauseMode | None:
    """
    Raises:
        ProtocolError: a pause mode that this version doesn't know.
    """
    try:
        return PauseMode(text) if text else None
    except ValueError as error:
        raise ProtocolError(f"pause: {text!r:.40} is unknown") from error


def error_of(message: router_pb2.Failed) -> RtpLlmError:
    """The typed error that a worker named; an unknown name becomes EngineError and is kept in the text."""
    return _error(message.type, message.message, message.param)


def control_error_of(reply: router_pb2.ControlReply) -> RtpLlmError | None:
    """Why a worker has not done what it was asked; None: it has."""
    return _error(reply.error, reply.message) if reply.error else None


def _error(name: str, message: str, param: str = "") -> RtpLlmError:
    cls = getattr(errors, name, None)
    if not (isinstance(cls, type) and issubclass(cls, RtpLlmError)):
        return errors.EngineError(f"{name}: {message}")
    if issubclass(cls, InvalidRequestError):
        return cls(message, param=param or None)
    return cls(message)
