"""What a server is asked for held-out prompts, and how its answers are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import pytest
from tokenizers import Tokenizer

Tool = Callable[[str], ModuleType]


class Handler(BaseHTTPRequestHandler):
    """Answers in OpenAI's shapes and keeps the bodies."""

    bodies: list[tuple[str, dict[str, Any]]] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.reply({"data": [{"id": "demo"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append((self.path, body))
        text = {"message": {"content": "4"}} if "chat" in self.path else {"text": "5"}
        self.reply({"choices": [{**text, "finish_reason": "stop" if "messages" in body else "length"}]})

    def reply(self, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Handler.bodies.clear()
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_server_gets_messages_or_the_ids_of_the_rendered_prompt(tool: Tool, url: str, demo: Path, tokenizer: Tokenizer):
    prompt, engines = tool("heldout").HeldOut, tool("engines")
    messages = [{"role": "user", "content": "2 + 2"}]
    generate = engines.server_generate(url, demo)
    assert generate([prompt(messages, "4")]) == ["4"]
    assert generate([prompt(messages, "4", None, False)]) == ["5" + engines.UNFINISHED]
    (chat, first), (completions, second) = Handler.bodies
    assert (chat, completions) == ("/v1/chat/completions", "/v1/completions")
    greedy = {"model": "demo", "temperature": 0, "max_tokens": 128}
    assert first == {**greedy, "messages": messages, "separate_reasoning": False}
    assert second["prompt"] == tokenizer.encode(tool("chatml").prompt_text(messages, None, False)).ids
