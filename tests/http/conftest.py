"""One prefill and one decode worker for all tests of a module; each test leaves them at rest."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.cluster.cluster import Cluster

MAX_BODY_BYTES = 64 << 10
MAX_MODEL_LEN = 1024


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    settings = {
        "model.served_name": "demo",
        "model.aliases": "gpt-demo, demo,claude-demo",
        "model.max_model_len": MAX_MODEL_LEN,
        "router.max_body_bytes": MAX_BODY_BYTES,
    }
    async with Cluster.running(log_dir=tmp_path_factory.mktemp("workers"), settings=settings) as running:
        yield running
        await running.at_rest()
