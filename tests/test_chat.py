"""The terminal chat's connection."""

import http.client

import pytest

from rtp_llm.chat import stream_chunks
from rtp_llm.errors import InvalidRequestError
from rtp_llm.http_client import connection_to, words_of


@pytest.mark.parametrize(
    ("url", "secure", "host", "port", "base"),
    [
        ("http://127.0.0.1:8000", False, "127.0.0.1", 8000, ""),
        ("http://host/", False, "host", 80, ""),
        ("https://host", True, "host", 443, ""),
        ("https://host:1234/llm/", True, "host", 1234, "/llm"),
        ("http://host/llm/v1", False, "host", 80, "/llm"),
        ("http://[::1]:8000", False, "::1", 8000, ""),
    ],
)
def test_scheme_port_and_path_of_the_url_are_honoured(url: str, secure: bool, host: str, port: int, base: str) -> None:
    connection, found = connection_to(url)
    assert isinstance(connection, http.client.HTTPSConnection) is secure
    assert (connection.host, connection.port, found) == (host, port, base)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "host", "http://host:port"])
def test_what_is_no_url_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="url"):
        next(stream_chunks(url, "/v1/chat/completions", {}))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": {"message": "too long", "param": "messages"}}', "too long"),
        (b'{"detail": 1}', '{"detail": 1}'),
        (b"<html>bad \xff</html>", "<html>bad \ufffd</html>"),
        (b"[]", "[]"),
    ],
)
def test_a_refusal_is_told_in_the_serverswords_of(body: bytes, words: str) -> None:
    assert words_of(body) == words
