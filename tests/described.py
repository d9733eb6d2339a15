"""What /openapi.json says of answers, held against answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
from jsonschema import Draft202012Validator

from rtp_llm.router.openapi import EVENT


class Described:
    """`seen`: (method, path, kind of answer) that were held against it."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self.seen: set[tuple[str, str, str]] = set()

    @classmethod
    async def by(cls, http: httpx.AsyncClient) -> Described:
        return cls((await http.get("/openapi.json")).json())

    @property
    def answers(self) -> set[tuple[str, str, str]]:
        """All that may be seen with status 200."""
        return {
            (method.upper(), path, kind)
            for path, operations in self._document["paths"].items()
            for method, operation in operations.items()
            for kind in operation["responses"].get("200", {"content": {}})["content"]
        }

    def check(self, method: str, path: str, answer: httpx.Response) -> None:
        """`path`: as the document has it."""
        kind = answer.headers["content-type"].partition(";")[0]
        responses = self._document["paths"][path][method.lower()]["responses"]
        content = responses["200" if answer.status_code == 200 else "default"]["content"][kind]
        if kind == "text/event-stream":
            found = list(data_of(answer.text))
            assert found
            for each in found:
                self._hold(each, content[EVENT])
        elif kind == "application/json":
            self._hold(answer.json(), content["schema"])
        if answer.status_code == 200:
            self.seen.add((method, path, kind))

    def _hold(self, found: Any, schema: dict[str, Any]) -> None:
        Draft202012Validator({**schema, "components": self._document["components"]}).validate(found)


def data_of(stream: str) -> Iterator[Any]:
    """Of each event, without what says that there are no more."""
    for line in stream.splitlines():
        name, _, data = line.partition(":")
        if name == "data" and data.strip() not in ("[DONE]", "[done]"):
            yield json.loads(data)
