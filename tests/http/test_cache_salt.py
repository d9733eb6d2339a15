"""cache_salt: who has another doesn't see what was asked before, not even by the figures of his answer."""

from __future__ import annotations

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.workload import Body

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"


async def cached(cluster: Cluster, path: str, body: Body, salt: str | None) -> int:
    response = await cluster.client.post(path, json={**body, "max_tokens": 1, "cache_salt": salt})
    assert response.status_code == 200, response.text
    return int(response.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETION, {"prompt": [7] * 70}),
        (COMPLETION, {"prompt": "a number that nobody is to see: 4711. " * 6}),
        (CHAT, {"messages": [{"role": "user", "content": "my number is 4711, keep it to yourself. " * 6}]}),
    ],
    ids=["token ids", "text", "chat"],
)
async def test_equal_prompts_share_their_cache_under_the_same_salt_only(
    path: str, body: Body, cluster: Cluster
) -> None:
    for salt in (None, "tenant-a", "tenant-b", "tenant-a ", "\u00e9"):
        assert await cached(cluster, path, body, salt) == 0, salt
    for salt in (None, "tenant-a", "tenant-b", "\u00e9"):
        assert await cached(cluster, path, body, salt) >= 32, salt


async def test_a_salt_changes_no_answer(cluster: Cluster) -> None:
    body = {"prompt": "What is 23 + 58?", "max_tokens": 12, "temperature": 0}
    texts = set()
    for salt in ("one", "two", "two"):
        response = await cluster.client.post(COMPLETION, json={**body, "cache_salt": salt})
        texts.add(response.json()["choices"][0]["text"])
    assert len(texts) == 1
