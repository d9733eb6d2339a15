"""Workers that are killed and pools that are resized under running streams: no client sees it."""

import asyncio
import os
import signal

import httpx
import pytest

from tests.serve.deployment import Deployment, alive, wait_for
from tests.serve.redeploy import redeploy
from tests.serve.streams import Streams, answers

NUM_STREAMS = 8


def long_answers(num_tokens: int = 300) -> list[dict[str, object]]:
    """Half greedy, half seeded."""
    return [
        {
            "prompt": f"Stream {number} counts: 1 2 3",
            "max_tokens": num_tokens,
            "ignore_eos": True,
            "temperature": float(number % 2),
            "seed": number,
        }
        for number in range(NUM_STREAMS)
    ]


def long_prompts() -> list[dict[str, object]]:
    """Prompts of many chunks, so that some compute and some push while others wait."""
    return [
        {"prompt": [300 + (number * 7 + i) % 1000 for i in range(1500)], "max_tokens": 24, "ignore_eos": True}
        for number in range(NUM_STREAMS)
    ]


def kill(deployment: Deployment, pool: str) -> None:
    os.kill(deployment.replica(pool), signal.SIGKILL)


async def rest(deployment: Deployment, workers: int = 2) -> None:
    """All workers are there again and hold nothing."""
    await asyncio.to_thread(deployment.wait_workers, workers)

    def at_rest() -> bool:
        metrics = deployment.metrics()
        busy = sum(metrics.total("rtp_llm_kv_blocks", state=s) for s in ("referenced", "granted", "quarantined"))
        return busy + metrics.total("rtp_llm_requests_running") + metrics.total("rtp_llm_transfer_outstanding") == 0

    await asyncio.to_thread(wait_for, at_rest)
    assert deployment.metrics().total("rtp_llm_idle_check_failures_total") == 0


@pytest.mark.parametrize("pool", ["decode", "prefill"])
async def test_streams_go_on_when_a_worker_is_killed_while_they_decode(deployment: Deployment, pool: str) -> None:
    undisturbed = await answers(deployment.url, long_answers())
    async with Streams(deployment.url, long_answers()) as streams:
        await streams.reached(20)
        kill(deployment, pool)
        assert await streams.finished() == undisturbed
    await rest(deployment)


@pytest.mark.parametrize("pool", ["prefill", "decode"])
async def test_streams_go_on_when_a_worker_is_killed_during_handovers(deployment: Deployment, pool: str) -> None:
    undisturbed = await answers(deployment.url, long_prompts())
    fresh = [{**body, "cache_salt": f"{pool} dies"} for body in long_prompts()]  # nothing of them is cached
    async with Streams(deployment.url, fresh) as streams:
        await streams.reached(1, num_streams=2)
        kill(deployment, pool)
        assert await streams.finished() == undisturbed
    await rest(deployment)


UPDATE = {"engine": {"max_num_seqs": 63}}
AT_FULL_CAPACITY = {"engine": {"max_num_seqs": 62}} | {
    pool: {"max_surge_percent": 100} for pool in ("prefill", "decode")
}


async def test_a_rolling_update_breaks_no_stream(deployment: Deployment) -> None:
    """Every replica is replaced, the router too."""
    undisturbed = await answers(deployment.url, long_answers())
    before = {deployment.replica(name): "ray::ServeReplica" for name in ("router", "prefill", "decode")}
    async with Streams(deployment.url, long_answers()) as streams:
        await streams.reached(5)
        await asyncio.to_thread(redeploy, deployment, UPDATE)
        assert await streams.finished() == undisturbed
    await asyncio.to_thread(wait_for, lambda: alive(before) == {})
    assert await answers(deployment.url, long_answers()) == undisturbed


async def test_a_rolling_update_at_full_capacity_keeps_nobody_waiting(deployment: Deployment) -> None:
    """New replicas are there before the old ones leave: requests go on meanwhile."""
    await asyncio.to_thread(redeploy, deployment, UPDATE)  # by a file, as the next: with one token
    undisturbed = await answers(deployment.url, long_answers())
    before = {deployment.replica(name): "ray::ServeReplica" for name in ("router", "prefill", "decode")}
    async with Streams(deployment.url, long_answers()) as streams:
        await streams.reached(5)
        update = asyncio.ensure_future(asyncio.to_thread(redeploy, deployment, AT_FULL_CAPACITY))
        async with httpx.AsyncClient(base_url=deployment.url, timeout=60, trust_env=False) as client:
            while not update.done():
                answer = await client.post("/v1/completions", json={"prompt": [5, 6, 7], "max_tokens": 2})
                assert answer.status_code == 200, answer.text
                await asyncio.sleep(0.1)
        await update
        assert await streams.finished() == undisturbed
    await asyncio.to_thread(wait_for, lambda: alive(before) == {})


async def test_settings_of_a_running_router_change_and_what_is_wrong_changes_none(deployment: Deployment) -> None:
    await asyncio.to_thread(redeploy, deployment, UPDATE)
    [router] = deployment.replicas("router")

    async def refused() -> bool:
        """Two answers at once: one of them waits for a worker when the other one comes."""
        async with httpx.AsyncClient(base_url=deployment.url, timeout=60, trust_env=False) as client:
            answer = await client.post("/v1/completions", json={"prompt": [[5]] * 2, "max_tokens": 1})
            assert answer.status_code in (200, 429), answer.text
            return answer.status_code == 429

    assert not await refused()
    await asyncio.to_thread(redeploy, deployment, UPDATE, user_config={"max_waiting": 1})
    assert await refused()
    await asyncio.to_thread(redeploy, deployment, UPDATE, user_config={"policy": "round_robin"})
    assert await refused()
    await asyncio.to_thread(redeploy, deployment, UPDATE, user_config={})
    assert not await refused()
    assert deployment.replicas("router") == [router]


async def test_growing_and_shrinking_a_pool_breaks_no_stream(deployment: Deployment) -> None:
    await asyncio.to_thread(redeploy, deployment, UPDATE)
    undisturbed = await answers(deployment.url, long_answers())
    [first] = deployment.replicas("decode")
    async with Streams(deployment.url, long_answers()) as streams:
        await asyncio.to_thread(redeploy, deployment, UPDATE, decode=2)
        assert await streams.finished() == undisturbed
    await rest(deployment, workers=3)
    assert len(deployment.replicas("decode")) == 2 and first in deployment.replicas("decode")
    async with Streams(deployment.url, long_answers()) as streams:
        await streams.reached(10)
        await asyncio.to_thread(redeploy, deployment, UPDATE, decode=1)
        assert await streams.finished() == undisturbed
    await asyncio.to_thread(wait_for, lambda: len(deployment.replicas("decode")) == 1)
    await rest(deployment)


async def test_a_client_that_leaves_frees_its_blocks(deployment: Deployment) -> None:
    async with Streams(deployment.url, long_answers(1500)) as streams:
        await streams.reached(5)
        assert [(stream.error, stream.finish) for stream in streams.streams] == [(None, None)] * NUM_STREAMS
        assert deployment.metrics().total("rtp_llm_requests_running") == NUM_STREAMS
    await rest(deployment)
    assert deployment.metrics().total("rtp_llm_requests_waiting") == 0


async def test_the_directory_may_die(deployment: Deployment) -> None:
    [pid] = [pid for pid, text in deployment.processes().items() if text.startswith("ray::Directory")]
    async with Streams(deployment.url, long_answers()) as streams:
        await streams.reached(5)
        os.kill(pid, signal.SIGKILL)
        await streams.finished()
    assert alive({pid: "ray::Directory"}) == {}
    assert deployment.is_healthy()
