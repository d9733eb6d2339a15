"""What the two ends of a session show each other: the secret that workers and routers share (worker.token), and, with TLS,
certificates of one authority.

The token is metadata of every call and checked by the server before the call runs: it says who may speak. TLS says who may
listen, too. Neither token nor key appears in a log or an error.
"""

from __future__ import annotations

import hmac
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from rtp_llm.config import WorkerSettings
from rtp_llm.errors import ConfigError

TOKEN_KEY = "rtp-llm-token-bin"  # "-bin": any bytes


@dataclass(frozen=True)
class Tls:
    """PEM. `name`: the DNS name that the server's certificate must have, whatever its address is."""

    certificate: bytes
    key: bytes = field(repr=False)
    ca: bytes
    name: str


@dataclass(frozen=True)
class Credentials:
    """Empty token: who reaches the server may call. No TLS: nothing is encrypted."""

    token: str = field(default="", repr=False)
    tls: Tls | None = None

    @classmethod
    def of(cls, settings: WorkerSettings) -> Credentials:
        """
        Raises:
            ConfigError: a file can't be read or isn't what it must be, or only some of the three are named.
        """
        return cls(settings.token.get_secret_value(), _tls(settings))

    @property
    def metadata(self) -> tuple[tuple[str, bytes], ...]:
        return ((TOKEN_KEY, self.token.encode()),) if self.token else ()

    def channel(self, address: str, options: list[tuple[str, Any]]) -> grpc.aio.Channel:
        if self.tls is None:
            return grpc.aio.insecure_channel(address, options=options)
        shown = grpc.ssl_channel_credentials(self.tls.ca, self.tls.key, self.tls.certificate)
        name = ("grpc.ssl_target_name_override", self.tls.name)
        return grpc.aio.secure_channel(address, shown, options=[*options, name])

    def listen(self, server: grpc.aio.Server, address: str) -> int:
        """The port.

        Raises:
            RuntimeError: `address` can't be listened on.
        """
        if self.tls is None:
            return int(server.add_insecure_port(address))
        pairs = [(self.tls.key, self.tls.certificate)]
        shown = grpc.ssl_server_credentials(pairs, self.tls.ca, require_client_auth=True)
        return int(server.add_secure_port(address, shown))


NO_CREDENTIALS = Credentials()


def _tls(settings: WorkerSettings) -> Tls | None:
    files = {name: getattr(settings, name) for name in ("tls_cert_file", "tls_key_file", "tls_ca_file")}
    if not any(files.values()):
        return None
    if missing := [name for name, path in files.items() if not path]:
        raise ConfigError(f"worker.{missing[0]} is not set: TLS needs certificate, key and authority")
    paths = {name: Path(path).expanduser() for name, path in files.items()}
    try:
        certificate, key, ca = (path.read_bytes() for path in paths.values())
    except OSError as error:
        raise ConfigError(f"worker.{_name_of(error.filename, paths)} {error.filename}: {error.strerror}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    loads: dict[str, Callable[[], None]] = {
        "tls_ca_file": lambda: context.load_verify_locations(paths["tls_ca_file"]),
        "tls_cert_file": lambda: context.load_cert_chain(paths["tls_cert_file"], paths["tls_key_file"], password=""),
    }
    for what, load in loads.items():
        try:
            load()
        except ssl.SSLError as error:
            of = f" and tls_key_file {paths['tls_key_file']}" if what == "tls_cert_file" else ""
            raise ConfigError(f"worker.{what} {paths[what]}{of}: {error.reason or 'not PEM'}") from error
    return Tls(certificate, key, ca, settings.tls_name)


def _name_of(found: str, paths: dict[str, Path]) -> str:
    return next(name for name, path in paths.items() if path == Path(found))


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
