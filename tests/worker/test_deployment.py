"""The pools' Serve deployments on a local Ray: a replica registers, serves a router's session, drains when it is removed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.config import load_config
from rtp_llm.directory import DirectoryClient, Member, remove_directory
from rtp_llm.wire.credentials import Credentials
from rtp_llm.wire.key import WorkerKey
from tests.worker.processes import SETTINGS, write_model
from tests.worker.tiny import VOCAB, ScriptedRouter

PROMPT = [(7 * t + 1) % VOCAB for t in range(45)]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def serve() -> Iterator[Any]:
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    import ray
    from ray import serve

    started = not ray.is_initialized()
    if started:
        ray.init(
            address="local", include_dashboard=False, num_cpus=1, log_to_driver=False, _node_ip_address="127.0.0.1"
        )
    yield serve
    serve.shutdown()
    if started:
        ray.shutdown()


async def members(directory: DirectoryClient, wanted: int) -> list[Member]:
    async def scan() -> list[Member]:
        async for found in directory.watch():
            if len(found) == wanted:
                return list(found)
        raise AssertionError

    return await asyncio.wait_for(scan(), 60)


async def test_replicas_of_both_pools_serve_and_drain_when_they_are_removed(serve: Any, tmp_path: Path) -> None:
    from rtp_llm.decode.deployment import decode_pool
    from rtp_llm.prefill.deployment import prefill_pool
    from rtp_llm.serve_internals import cluster_token

    overrides = SETTINGS | {
        "model.path": str(write_model(tmp_path)),
        "worker.directory": "directory-of-the-deployment-test",
        "engine.num_kv_blocks": 512,
    }
    config = load_config(overrides=overrides, environ={})
    directory = DirectoryClient(config.worker.directory)
    try:
        for name, pool in (("p", prefill_pool), ("d", decode_pool)):
            await asyncio.to_thread(serve.run, pool(config), name=name, route_prefix=f"/{name}")
        prefill, decode = sorted(await members(directory, 2), key=lambda m: m.pool, reverse=True)
        assert (prefill.pool, decode.pool) == ("prefill", "decode")
        router = ScriptedRouter(credentials=Credentials.of(config.with_token_derived(cluster_token()).worker))
        s = await router.connect(WorkerKey(prefill.id, prefill.epoch), prefill.address)
        await router.connect(WorkerKey(decode.id, decode.epoch), decode.address)
        k = router.key(1)
        s.submit(k, PROMPT, 2000, receiver=(WorkerKey(decode.id, decode.epoch), decode.address))
        await router.until(lambda: len(router.tokens(k)) > 3)
        removal = asyncio.ensure_future(asyncio.to_thread(serve.delete, "d"))
        await router.until(lambda: router.kinds("draining"))
        assert await members(directory, 1) == [prefill]
        assert len(await router.finished(k, 60)) == 2000
        await asyncio.wait_for(removal, 60)
        await router.close()
    finally:
        for name in ("p", "d"):
            await asyncio.to_thread(serve.delete, name)
        remove_directory(config.worker.directory)
