"""Requests in cases/: what each is answered with, right or refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.cluster.cluster import Cluster

pytestmark = pytest.mark.asyncio(loop_scope="module")

CASES = Path(__file__).parent / "cases"
TYPES = {400: "invalid_request_error", 404: "not_found_error", 415: "invalid_request_error"}


def cases() -> Iterator[Any]:
    """A file's `request` with the `change` or `headers` of each of its `cases`, which say status and what answer or error
    hold."""
    for path in sorted(CASES.glob("*.json")):
        file = json.loads(path.read_text())
        for case in file["cases"]:
            shown = case.get("change", case.get("headers"))
            yield pytest.param(file, case, id=f"{path.stem}-{json.dumps(shown)[:60]}")


@pytest.mark.parametrize(("file", "case"), list(cases()))
async def test_a_case_is_right_or_refused_by_name(file: dict[str, Any], case: dict[str, Any], cluster: Cluster) -> None:
    content = json.dumps(written_out({**file["request"], **case.get("change", {})}))
    headers = case.get("headers", {"Content-Type": "application/json"})
    response = await cluster.client.post(file["path"], content=content, headers=headers)
    assert response.status_code == case["status"], response.text
    if case["status"] == 200:
        assert_holds(response.json(), case.get("answer", {}))
        return
    error = response.json()["error"]
    wanted = {"param": None, "code": case["status"], "type": TYPES[case["status"]], **case.get("error", {})}
    assert {name: error[name] for name in wanted} == wanted, error
    assert set(error) == {"message", "type", "param", "code"}
    for text in (wanted["param"], *case.get("says", [])):
        assert text is None or text in error["message"], error


async def test_calls_of_a_streamed_answer_come_as_deltas(cluster: Cluster) -> None:
    """By OpenAI's client: a call's first delta names it, the others are more of its arguments, nothing of it is text."""
    file = json.loads((CASES / "tool_calls_of_an_answer.json").read_text())
    request = {"model": "demo", **file["request"], **file["cases"][0]["change"]}
    async with openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(**request, stream=True)
        choices = [choice async for chunk in stream for choice in chunk.choices]
    assert choices[0].delta.role == "assistant"
    first, *more = [call for choice in choices for call in choice.delta.tool_calls or ()]
    assert first.index == 0 and first.id and first.type == "function" and first.function is not None
    assert first.function.name == "get_weather"
    assert all((call.index, call.id, call.type) == (0, None, None) and call.function.name is None for call in more)
    arguments = "".join(call.function.arguments or "" for call in (first, *more))
    assert json.loads(arguments) == {"city": "Paris"}
    assert "".join(choice.delta.content or "" for choice in choices) == ""
    assert [choice.finish_reason for choice in choices] == [None] * (len(choices) - 1) + ["tool_calls"]


def written_out(value: Any) -> Any:
    """With {"repeated": a text or list, "times": so often} as what it stands for."""
    if isinstance(value, Mapping):
        if value.keys() == {"repeated", "times"}:
            return written_out(value["repeated"]) * value["times"]
        return {name: written_out(item) for name, item in value.items()}
    return [written_out(item) for item in value] if isinstance(value, list) else value


def assert_holds(found: Any, wanted: Any) -> None:
    """Objects of `found` may have more fields."""
    if isinstance(wanted, Mapping):
        for name, value in wanted.items():
            assert_holds(found[name], value)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_holds(one, other)
    else:
        assert found == wanted
