"""What the commands that talk to a running server share: its address, the key, its errors."""

from __future__ import annotations

import http.client
import json
import os
from urllib.parse import urlsplit

from rtp_llm.errors import InvalidRequestError, UnavailableError

TIMEOUT_S = 10
KEY_VARIABLE = "RTP_LLM_API_KEY"  # not a flag: those show in the list of processes


def key_header() -> dict[str, str]:
    """Of the key in the environment: a user's for `chat` and `bench serve`, the admin's for `top`."""
    return bearer(os.environ.get(KEY_VARIABLE, ""))


def bearer(key: str) -> dict[str, str]:
    """The header that brings `key`; none for an empty one."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def connection_to(url: str, timeout_s: float | None = None) -> tuple[http.client.HTTPConnection, str]:
    """A connection that opens on its first request, and the path that the API lies under, without its `/v1`.

    Raises:
        InvalidRequestError: `url` isn't one of a server.
    """
    address = urlsplit(url)
    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    try:
        kind, port = kinds.get(address.scheme), address.port
    except ValueError as error:
        raise InvalidRequestError(f"url {url!r}: {error}", param="url", value=url) from error
    if kind is None or not address.hostname:
        raise InvalidRequestError(f"url must be http://host:port or https://…, got {url!r}", param="url", value=url)
    return kind(address.hostname, port, timeout=timeout_s), address.path.rstrip("/").removesuffix("/v1")


def text_at(url: str, path: str) -> str:
    """
    Raises:
        UnavailableError: the server can't be reached, or it answers with another status than 200 (its own words).
        InvalidRequestError: `url` isn't one of a server.
    """
    connection, base = connection_to(url, TIMEOUT_S)
    try:
        connection.request("GET", base + path, headers=key_header())
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(f"{url}: {error}") from error
    finally:
        connection.close()
    if response.status != 200:
        raise UnavailableError(f"{url}{path}: {response.status}: {words_of(body)}")
    return body.decode()


def words_of(body: bytes) -> str:
    """An error's message; of a body in another shape (a proxy's) all of it."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")
