"""A chat in the terminal, streaming, over the HTTP API of a running server."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Iterator
from typing import Any

from rtp_llm.errors import InvalidRequestError, UnavailableError
from rtp_llm.http_client import connection_to, key_header, words_of


def converse(url: str, system: str | None, temperature: float, max_tokens: int | None) -> int:
    """Reads lines from standard input until its end, streams each answer. `/reset` forgets, `/quit` leaves."""
    opening = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    terminal = sys.stdin.isatty()
    if terminal:
        print("Type a message; /reset starts anew, /quit leaves.")
    while True:
        try:
            line = input("> " if terminal else "").strip()
        except (EOFError, KeyboardInterrupt):
            return 0
        if line == "/quit":
            return 0
        if line == "/reset":
            messages = list(opening)
        elif line:
            messages.append({"role": "user", "content": line})
            messages.append({"role": "assistant", "content": _answer(url, messages, temperature, max_tokens)})


def _answer(url: str, messages: list[dict[str, str]], temperature: float, max_tokens: int | None) -> str:
    body = {"messages": messages, "temperature": temperature, "max_tokens": max_tokens, "stream": True}
    parts: list[str] = []
    thinks = False
    for chunk in stream_chunks(url, "/v1/chat/completions", body):
        delta = chunk["choices"][0]["delta"] if chunk["choices"] else {}
        if thought := delta.get("reasoning_content"):
            print(thought if thinks else f"<think>\n{thought}", end="", flush=True)
            thinks = True
        if text := delta.get("content"):
            print(f"\n</think>\n\n{text}" if thinks else text, end="", flush=True)
            thinks = False
            parts.append(text)
    print("\n</think>" if thinks else "")
    return "".join(parts)


def stream_chunks(url: str, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The JSON events of one streamed answer.

    Raises:
        UnavailableError: the server can't be reached, or the stream broke off.
        InvalidRequestError: the server refused the request (its own words), or `url` isn't one of a server.
    """
    connection, base = connection_to(url)
    headers = {"Content-Type": "application/json", **key_header()}
    try:
        connection.request("POST", base + path, json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            raise InvalidRequestError(f"{response.status}: {words_of(response.read())}")
        for line in response:
            if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                event = json.loads(line[len(b"data: ") :])
                if "error" in event:
                    raise UnavailableError(event["error"]["message"])
                yield event
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(f"{url}: {error}") from error
    finally:
        connection.close()
