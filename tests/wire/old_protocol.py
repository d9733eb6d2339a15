"""OldProtocol: what the version before says and understands. OldProtocolProxy: through it both ends look like one of that
version to each other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from rtp_llm.wire.endpoint import CHANNEL_OPTIONS
from rtp_llm.wire.versions import SPOKEN
from tests.wire.proxy import Proxy

KEPT = Path(__file__).parent / f"protocol_{SPOKEN.newest - 1}.txtpb"


class OldProtocol:
    """The descriptors as they were kept (tools/proto.py --keep)."""

    def __init__(self) -> None:
        kept = descriptor_pb2.FileDescriptorSet()
        text_format.Parse(KEPT.read_text(), kept)
        pool = descriptor_pool.DescriptorPool()
        for file in kept.file:
            pool.Add(file)
        self.files = [pool.FindFileByName(file.name) for file in kept.file]

    def methods(self) -> Any:
        return [
            method for file in self.files for service in file.services_by_name.values() for method in service.methods
        ]

    def stripped(self, data: bytes, descriptor: Any) -> bytes:
        """The message without what that version doesn't know."""
        message = message_factory.GetMessageClass(descriptor).FromString(data)
        message.DiscardUnknownFields()
        return bytes(message.SerializeToString())


class OldProtocolProxy(Proxy):
    """A gRPC server that passes on what the version before knows, calls and fields, both ways; no other call is there."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self._old = OldProtocol()
        self._grpc = grpc.aio.server(options=CHANNEL_OPTIONS)

    async def start(self) -> None:
        for method in self._old.methods():
            handler = self._streams(method) if method.full_name.endswith(".Session") else self._answers(method)
            service = grpc.method_handlers_generic_handler(method.containing_service.full_name, {method.name: handler})
            self._grpc.add_generic_rpc_handlers((service,))
        self.address = f"127.0.0.1:{self._grpc.add_insecure_port('127.0.0.1:0')}"
        await self._grpc.start()

    async def close(self) -> None:
        await self._grpc.stop(0)

    def _call(self, method: Any) -> tuple[grpc.aio.Channel, str]:
        return grpc.aio.insecure_channel(self.target, CHANNEL_OPTIONS), (
            f"/{method.containing_service.full_name}/{method.name}"
        )

    def _answers(self, method: Any) -> Any:
        async def answer(request: bytes, context: Any) -> bytes:
            channel, path = self._call(method)
            async with channel:
                try:
                    reply = await channel.unary_unary(path)(self._old.stripped(request, method.input_type))
                except grpc.aio.AioRpcError as error:
                    await context.abort(error.code(), error.details())
                return self._old.stripped(reply, method.output_type)

        return grpc.unary_unary_rpc_method_handler(answer)

    def _streams(self, method: Any) -> Any:
        async def session(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            channel, path = self._call(method)
            async with channel:
                call = channel.stream_stream(path)()
                up = asyncio.ensure_future(pass_on(requests, call))
                try:
                    async for reply in call:
                        self.num_forwarded += 1
                        yield self._old.stripped(reply, method.output_type)
                except grpc.aio.AioRpcError as error:
                    await context.abort(error.code(), error.details())
                finally:
                    up.cancel()
                    call.cancel()

        async def pass_on(requests: AsyncIterator[bytes], call: Any) -> None:
            with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):  # the reply stream ends by itself
                async for request in requests:
                    await call.write(self._old.stripped(request, method.input_type))
                await call.done_writing()

        return grpc.stream_stream_rpc_method_handler(session)
