"""Two models on one Ray, as deploy/ray/two_models.yaml deploys them: what one does, the other doesn't see."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rtp_llm.config import DEMO_MODEL
from tests.model.files import with_layers_exchanged
from tests.serve.deployment import FileDeployment, Metrics, wait_for
from tests.serve.streams import Streams, answers

pytestmark = pytest.mark.slow
MODELS = ("large", "small")
ADMIN_KEY = "the-admins"


class TwoModels(FileDeployment):
    """The second model is another one than the first, of the same shapes; each has its admin key."""

    def __init__(self, state: Path) -> None:
        other = with_layers_exchanged(Path(DEMO_MODEL), state / "other")
        key = state / "admin.key"
        key.write_text(ADMIN_KEY)

        def edit(declared: dict[str, Any]) -> None:
            large, small = (each["args"] for each in declared["applications"])
            small["model"]["path"] = str(other)
            for args in (large, small):
                args["http"] = {"admin_key_file": str(key)}

        super().__init__("two_models.yaml", state, edit, path="/large")

    def of(self, model: str) -> str:
        return f"http://127.0.0.1:{self._port}/{model}"

    def scrape(self, model: str) -> Metrics:
        return Metrics(self.get(model, "/metrics").text)

    def get(self, model: str, path: str) -> httpx.Response:
        return self._ask("GET", model, path)

    def post(self, model: str, path: str) -> httpx.Response:
        return self._ask("POST", model, path)

    def _ask(self, method: str, model: str, path: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        response = httpx.request(
            method, self.of(model) + path, headers=headers, json={} if method == "POST" else None, timeout=70
        )
        assert response.status_code == 200, response.text
        return response


@pytest.fixture(scope="module")
def deployed() -> Iterator[TwoModels]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="rtp-") as state:  # a socket's path is short
        found = TwoModels(Path(state))
        for model in MODELS:
            wait_for(lambda model=model: httpx.get(f"{found.of(model)}/live").status_code == 200, 60)
            found.get(model, "/health?workers=2&wait_s=60")
        yield found
        found.stop(signal.SIGINT)


def bodies(model: str) -> list[dict[str, Any]]:
    return [
        {"model": model, "prompt": [7 + number, 8, 9] * 9, "max_tokens": 200, "ignore_eos": True, "temperature": 0.0}
        for number in range(4)
    ]


def test_each_application_says_its_own_model_and_knows_no_other(deployed: TwoModels) -> None:
    for model, unknown in (MODELS, MODELS[::-1]):
        cards = deployed.get(model, "/v1/models").json()["data"]
        assert [card["id"] for card in cards] == [model]
        refused = httpx.post(f"{deployed.of(model)}/v1/completions", json={"model": unknown, "prompt": [5]})
        assert refused.status_code == 404 and unknown in refused.json()["error"]["message"]


def test_each_has_workers_and_metrics_of_its_own(deployed: TwoModels) -> None:
    for model in MODELS:
        metrics = deployed.scrape(model)
        assert [len(metrics.workers(pool)) for pool in ("prefill", "decode")] == [1, 1]
        assert {each["model"] for _, each, _ in metrics._samples if "model" in each} == {model}
        few = httpx.get(f"{deployed.of(model)}/health", params={"workers": 3})
        assert few.status_code == 503
    assert not deployed.scrape("large").workers("decode") & deployed.scrape("small").workers("decode")


async def test_requests_of_both_at_once_get_each_its_own_models_answers(deployed: TwoModels) -> None:
    before = {model: deployed.scrape(model) for model in MODELS}
    alone = {model: await answers(deployed.of(model), bodies(model)) for model in MODELS}
    assert alone["large"] != alone["small"]
    async with (
        Streams(deployed.of("large"), bodies("large")) as large,
        Streams(deployed.of("small"), bodies("small")) as small,
    ):
        assert [await large.finished(), await small.finished()] == [alone["large"], alone["small"]]
    for model in MODELS:
        grown = deployed.scrape(model).total("rtp_llm_output_tokens_total") - before[model].total(
            "rtp_llm_output_tokens_total"
        )
        assert grown == 2 * 4 * 200


async def test_a_pause_and_a_killed_worker_of_one_are_nothing_to_the_other(deployed: TwoModels) -> None:
    undisturbed = await answers(deployed.of("small"), bodies("small"))
    deployed.post("large", "/pause")
    assert deployed.get("large", "/is_paused").json()["is_paused"]
    assert not deployed.get("small", "/is_paused").json()["is_paused"]
    [victim] = deployed.replicas("decode", application="large")
    async with Streams(deployed.of("small"), bodies("small")) as streams:
        await streams.reached(5)
        os.kill(victim, signal.SIGKILL)
        assert await streams.finished() == undisturbed
    assert deployed.scrape("small").total("rtp_llm_worker_losses_total") == 0
    wait_for(lambda: deployed.replicas("decode", application="large") not in ([], [victim]), 60)
    deployed.get("large", "/health?workers=2&wait_s=60")
    deployed.post("large", "/resume")
    assert await answers(deployed.of("small"), bodies("small")) == undisturbed
    assert len(await answers(deployed.of("large"), bodies("large"))) == 4
