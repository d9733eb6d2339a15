"""The secret that workers and routers share (worker.token): metadata of every call, checked by the server before the call runs.

It says who may speak, not who listens: the connection isn't encrypted. It appears in no log and no error.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

TOKEN_KEY = "rtp-llm-token-bin"  # "-bin": any bytes


def token_metadata(token: str) -> tuple[tuple[str, bytes], ...]:
    return ((TOKEN_KEY, token.encode()),) if token else ()


class TokenCheck(grpc.aio.ServerInterceptor):  # type: ignore[misc, unused-ignore]
    """Refuses calls whose metadata lacks `token`: UNAUTHENTICATED."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        found: Any = dict(handler_call_details.invocation_metadata or ()).get(TOKEN_KEY)
        handler = await continuation(handler_call_details)
        if handler is None or (found is not None and hmac.compare_digest(found, self._token)):
            return handler
        reason = "worker.token differs from this worker's" if found is not None else "this worker asks for worker.token"

        async def refuse(_: Any, context: Any) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, reason)

        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(refuse)
        return grpc.unary_unary_rpc_method_handler(refuse)
