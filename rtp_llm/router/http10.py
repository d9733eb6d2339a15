"""Event streams for clients that speak HTTP/1.0, as nginx's proxy_pass does by default: not in chunks, which HTTP/1.0 doesn't
know (RFC 9112, 6.1), but until the connection closes. uvicorn's protocol on httptools writes chunks to everybody; its other
one, on h11, doesn't. As read in uvicorn 0.54; tests/router/test_http10.py fails where an attribute is gone.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent


def install() -> None:
    """In this process, for requests from now on. Idempotent."""
    try:
        from uvicorn.protocols.http import httptools_impl
    except ImportError:  # without httptools uvicorn takes h11
        return
    if getattr(httptools_impl.RequestResponseCycle, "ends_by_close", False):
        return

    class Cycle(httptools_impl.RequestResponseCycle):
        ends_by_close = True

        async def send(self, message: ASGISendEvent) -> None:
            if self.scope["http_version"] == "1.0" and not self.disconnected:
                self._expect(message)
            await super().send(message)

        def _expect(self, message: ASGISendEvent) -> None:
            """An unknown length is a known one that is long enough until the last part comes."""
            if message["type"] == "http.response.start":
                lengths = [value for name, value in message.get("headers", ()) if name.lower() == b"content-length"]
                self._is_open = not lengths
                if self._is_open:
                    self.chunked_encoding, self.expected_content_length = False, sys.maxsize
            elif message["type"] == "http.response.body" and self._is_open and not message.get("more_body", False):
                self.expected_content_length = len(message.get("body", b""))

    httptools_impl.RequestResponseCycle = Cycle  # type: ignore[misc]
