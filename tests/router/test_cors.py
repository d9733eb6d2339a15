"""Pages of other origins: they may call if `http.cors_origins` names them, whatever the answer is."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from rtp_llm.config import load_config
from rtp_llm.directory import StaticMembership
from rtp_llm.errors import OverloadedError, WorkerLostError
from rtp_llm.router.ingress import build_ingress
from rtp_llm.router.service import Service
from tests.router.test_ingress import CHAT, JSON, STREAMED, ScriptedBackend

PAGE, OTHER = "http://localhost:3000", "http://evil.example"
PATH = "/v1/chat/completions"
QUESTION = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
ALLOWED = "access-control-allow-origin"


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend()


def client(backend: ScriptedBackend, *origins: str) -> httpx.AsyncClient:
    backend.cors_origins = list(origins)
    transport = httpx.ASGITransport(app=build_ingress(lambda: backend), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://router")


@pytest.mark.parametrize("origins", [(PAGE,), ("*",), ("https://a.example", PAGE)])
async def test_a_browsers_question_is_answered_and_the_call_goes_through(
    backend: ScriptedBackend, origins: tuple[str, ...]
) -> None:
    http = client(backend, *origins)
    question = await http.options(PATH, headers={"Origin": PAGE, **QUESTION})
    assert question.status_code == 200
    assert question.headers[ALLOWED] in (PAGE, "*")
    assert "POST" in question.headers["access-control-allow-methods"]
    assert question.headers["access-control-allow-headers"] == QUESTION["Access-Control-Request-Headers"]
    for method, path, body in (("GET", "/v1/models", None), ("POST", PATH, CHAT), ("POST", PATH, STREAMED)):
        answer = await http.request(method, path, json=body, headers={"Origin": PAGE})
        assert answer.status_code == 200 and answer.headers[ALLOWED] in (PAGE, "*")


async def test_errors_can_be_read_by_the_page_too(backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    http = client(backend, PAGE)
    origin = {"Origin": PAGE}
    answers = {
        400: await http.post(PATH, json={**CHAT, "temperature": -1}, headers=origin),
        404: await http.get("/v1/nothing", headers=origin),
        405: await http.get(PATH, headers=origin),
        413: await http.post(PATH, content=b"x" * ((1 << 20) + 1), headers={**origin, **JSON}),
        415: await http.post(PATH, content=b"{}", headers={**origin, "Content-Type": "text/plain"}),
    }
    backend.error = OverloadedError("no room")
    answers[429] = await http.post(PATH, json=STREAMED, headers=origin)
    backend.error = WorkerLostError("gone")
    answers[500] = await http.post(PATH, json=CHAT, headers=origin)
    for status, answer in answers.items():
        assert answer.status_code == status and answer.headers[ALLOWED] == PAGE, status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

    async def fail() -> bytes:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(backend, "metrics", fail)
    unforeseen = await http.get("/metrics", headers=origin)
    assert unforeseen.status_code == 500 and unforeseen.headers[ALLOWED] == PAGE
    assert unforeseen.json()["error"]["message"] == "internal error"


async def test_other_origins_are_told_nothing(backend: ScriptedBackend) -> None:
    http = client(backend, PAGE)
    question = await http.options(PATH, headers={"Origin": OTHER, **QUESTION})
    assert question.status_code == 400 and ALLOWED not in question.headers
    assert ALLOWED not in (await http.get("/v1/models", headers={"Origin": OTHER})).headers


async def test_without_a_setting_no_page_may_call(backend: ScriptedBackend) -> None:
    http = client(backend)
    question = await http.options(PATH, headers={"Origin": PAGE, **QUESTION})
    assert question.status_code == 405 and ALLOWED not in question.headers
    assert ALLOWED not in (await http.post(PATH, json=CHAT, headers={"Origin": PAGE})).headers


@pytest.mark.parametrize(
    ("yaml", "flag"),
    [
        ("", f"https://a.example, {PAGE}"),
        (f"http: {{cors_origins: 'https://a.example,{PAGE} ,'}}", None),
        (f"http:\n  cors_origins:\n  - https://a.example\n  - {PAGE}\n", None),
    ],
    ids=["a flag's text", "YAML's text", "YAML's list"],
)
async def test_the_setting_is_what_the_router_answers_by(yaml: str, flag: str | None, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml)
    overrides = {} if flag is None else {"http.cors_origins": flag}
    service = Service(load_config(file, overrides=overrides, environ={}), StaticMembership())
    transport = httpx.ASGITransport(app=build_ingress(lambda: service))
    async with httpx.AsyncClient(transport=transport, base_url="http://router") as http:
        for origin in ("https://a.example", PAGE):
            question = await http.options(PATH, headers={"Origin": origin, **QUESTION})
            assert question.status_code == 200 and question.headers[ALLOWED] == origin
            assert (await http.get("/v1/models", headers={"Origin": origin})).headers[ALLOWED] == origin
        refused = await http.options(PATH, headers={"Origin": OTHER, **QUESTION})
        assert refused.status_code == 400 and ALLOWED not in refused.headers
    await service.close()
