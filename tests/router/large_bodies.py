"""Bodies of a given size that are all structure or all text, right and wrong, with the status that each is answered with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

CONTEXT = 2048  # of the demo model
USER = {"role": "user", "content": "What is 23 + 58?"}
CHAT = json.dumps({"messages": [USER], "max_tokens": 4})[:-1]
COMPLETION = '{"prompt": [5, 6, 7], "max_tokens": 4'


@dataclass(frozen=True)
class LargeBody:
    name: str
    path: str
    content: bytes
    status: int

    @property
    def size(self) -> int:
        return len(self.content)


def filled(size: int, head: str, item: str, tail: str, between: str = ",") -> bytes:
    """`head`, as many items as fit, `tail`."""
    count = (size - len(head) - len(tail) + len(between)) // (len(item) + len(between))
    return (head + between.join([item] * count) + tail).encode()


def large_bodies(size: int) -> Iterator[LargeBody]:
    def chat(name: str, head: str, item: str, tail: str, status: int = 400, between: str = ",") -> LargeBody:
        return LargeBody(name, "/v1/chat/completions", filled(size, head, item, tail, between), status)

    def completion(name: str, head: str, item: str, tail: str, status: int = 400, between: str = ",") -> LargeBody:
        return LargeBody(name, "/v1/completions", filled(size, head, item, tail, between), status)

    def response(name: str, head: str, item: str, tail: str, status: int = 400, between: str = ",") -> LargeBody:
        return LargeBody(name, "/v1/responses", filled(size, head, item, tail, between), status)

    for name, item in (
        ("objects", "{}"),
        ("lists", "[]"),
        ("numbers", "1"),
        ("texts", '"a"'),
        ("nested", '[{"a":[[]]}]'),
    ):
        yield chat(f"ignored metadata of {name}", f'{CHAT}, "metadata": [', item, "]}", 200)
    yield chat("ignored metadata of one text", f'{CHAT}, "metadata": "', "x", '"}', 200, "")
    yield chat("ignored fields", f"{CHAT}, ", '"a": 1', "}", 200)
    prompt = "[" + ",".join(["1000"] * (CONTEXT - 5)) + "]"
    content = '{"max_tokens": 2, "prompt": [' + ",".join([prompt] * 128) + "]"
    yield LargeBody("128 full prompts", "/v1/completions", filled(size, content + ', "x": "', "x", '"}', ""), 200)
    yield completion("prompt of objects", '{"prompt": [', "{}", "]}")
    yield completion("prompt of lists of objects", '{"prompt": [[1],', "[{}]", "]}")
    yield completion("prompt of lists", '{"prompt": [', "[]", "]}")
    yield completion("prompt of texts, one number", '{"prompt": [', '"a"', ", 1]}")
    yield completion("prompt of ids", '{"prompt": [', "1", "]}")
    yield completion("prompt of ids, one text", '{"prompt": [', "1", ', "a"]}')
    yield completion("prompt of one text", '{"prompt": "', "a b ", '"}', 400, "")
    yield completion("one long word", '{"prompt": "', "a", '"}', 400, "")
    yield chat("messages that are numbers", '{"messages": [', "1", "]}")
    yield chat("messages that are objects", '{"messages": [', "{}", "]}")
    yield chat("many messages", '{"messages": [', '{"role":"user","content":"a"}', "]}")
    yield chat(
        "content of objects", '{"messages": [{"role": "user", "content": [', '{"type":"text","text":"a"}', "]}]}"
    )
    yield chat("content that is an object", '{"messages": [{"role": "user", "content": {', '"a":1', "}}]}")
    yield completion("stop strings", f'{COMPLETION}, "stop": [', '"a"', "]}")
    yield completion("a long stop string", f'{COMPLETION}, "stop": ["', "a", '"]}', 400, "")
    yield completion("stop_token_ids that are texts", f'{COMPLETION}, "stop_token_ids": [', '"x"', "]}")
    yield chat("a schema with a huge enum", f'{CHAT}, "response_format": {{"schema": {{"enum": [', '"a"', "]}}}")
    yield chat("tools", f'{CHAT}, "tools": [', "{}", "]}")
    yield chat("template variables", f'{CHAT}, "chat_template_kwargs": {{', '"a":{}', "}}", 200)
    yield chat("a huge role", '{"messages": [{"content": "a", "role": "', "a", '"}]}', 400, "")
    yield completion("deep nesting", '{"prompt": ', "[", "}", 400, "")
    yield completion("deep nesting, ignored", f'{COMPLETION}, "x": ', '{"a":', "}", 400, "")
    deep = "[" * 30_000 + "]" * 30_000
    yield completion("deep nesting, closed", f'{{"x": {deep}, "y": [', "1", '], "prompt": "a"}')
    yield response("input of objects", '{"input": [', "{}", "]}")
    yield response("many input items", '{"input": [', '{"role":"user","content":"a"}', "]}")
    yield response(
        "an input item of many parts",
        '{"input": [{"role": "user", "content": [',
        '{"type":"input_text","text":"a b c"}',
        "]}]}",
    )
    yield response("a huge reference", '{"input": "a", "previous_response_id": "', "a", '"}', 404, "")
    yield response("response tools", '{"input": "a", "tools": [', '{"type":"function","name":"f"}', "]}")
    yield response("metadata", '{"input": "a", "metadata": {', '"a":{}', "}}")
    thought = '{"input": [{"role":"user","content":"a"},{"type":"reasoning","summary":[{"type":"summary_text","text":"'
    yield response("a thought that no template shows", thought, "so ", '"}]},{"role":"user","content":"b"}]}', 200, "")
    yield completion("no JSON", f'{COMPLETION}, "x": [', "1", ",]}")
