"""What router and HTTP add to the time to the first token.

python benchmarks/router_ttft.py [--pairs 200] [--prompt-tokens 16]

Pairs on one machine: the same prompt of random ids (new for each pair: no prefix hit) through HTTP, router, session and a lone
worker process, and in an engine of this process; which comes first takes turns. TTFT: from before the request is written to
the first token of the answer. Client and router share this process, so the client's own work counts as the router's.
Then the same with a prefill and a decode worker. The demo model, bf16, one thread an engine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rtp_llm.config import load_config
from rtp_llm.engine import Engine, build
from rtp_llm.request import Request
from rtp_llm.sampling_params import SamplingParams
from tests.cluster.cluster import Cluster

LIMIT_MS = 5.0
MAX_TOKENS = 4
VOCABULARY = 2048
SETTINGS = {"engine.num_threads": 1, "engine.kv_cache_bytes": 64 << 20, "engine.max_num_batched_tokens": 512}

FirstToken = Callable[[list[int]], Awaitable[float]]


class Client:
    """A kept connection that speaks just enough HTTP: what httpx spends on a request would be taken for the router's."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, url: str) -> Client:
        host, port = url.removeprefix("http://").split(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def first_token(self, prompt: list[int]) -> float:
        """Seconds to the first event; returns when the answer is whole."""
        body = json.dumps(
            {"prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0, "ignore_eos": True, "stream": True}
        )
        began = time.perf_counter()
        self._writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: router\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        first = await self._reader.readuntil(b"data: {")
        took = time.perf_counter() - began
        if not first.startswith(b"HTTP/1.1 200"):
            raise SystemExit(first.decode())
        await self._reader.readuntil(b"data: [DONE]")
        await self._reader.readuntil(b"\r\n0\r\n\r\n")
        return took

    def close(self) -> None:
        self._writer.close()


def in_process(engine: Engine) -> FirstToken:
    async def first_token(prompt: list[int]) -> float:
        sampling = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0, ignore_eos=True, seed=0)
        request = Request(request_id="", prompt=prompt, sampling=sampling)
        began, took = time.perf_counter(), 0.0
        async for _ in engine.generate(request):
            took = took or time.perf_counter() - began
        return took

    return first_token


async def paired(one: FirstToken, two: FirstToken, pairs: int, prompt_tokens: int) -> tuple[list[float], list[float]]:
    draw = random.Random(1)
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(pairs + pairs // 10):
        prompt = [draw.randrange(3, VOCABULARY) for _ in range(prompt_tokens)]
        for which in (0, 1) if number % 2 else (1, 0):
            took = await (one, two)[which](prompt)
            if number >= pairs // 10:  # the first ones warm up
                times[which].append(took * 1000)
    return times


def report(name: str, engine: list[float], router: list[float]) -> float:
    added = statistics.median(router) - statistics.median(engine)
    pairwise = sorted(r - e for e, r in zip(engine, router, strict=True))
    print(f"{name}: TTFT, ms           median     p95")
    for what, times in (("engine in this process", engine), ("HTTP, router, worker", router)):
        print(f"  {what:26} {statistics.median(times):6.2f}  {statistics.quantiles(times, n=20)[-1]:6.2f}")
    print(f"  {'added (pairs)':26} {statistics.median(pairwise):6.2f}  {pairwise[int(len(pairwise) * 0.95)]:6.2f}")
    return added


async def measure(pairs: int, prompt_tokens: int) -> bool:
    config = load_config(overrides=SETTINGS, environ={})
    met = True
    with tempfile.TemporaryDirectory() as logs, Engine(build(config.model, config.engine)) as engine:
        for name, decode in (("a lone worker", 0), ("prefill and decode worker", 1)):
            async with Cluster.running(prefill=1, decode=decode, log_dir=Path(logs), settings=SETTINGS) as cluster:
                client = await Client.connect(cluster.url)
                with contextlib.closing(client):
                    times = await paired(in_process(engine), client.first_token, pairs, prompt_tokens)
                met &= report(name, *times) <= LIMIT_MS
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    options = parser.parse_args()
    met = asyncio.run(measure(options.pairs, options.prompt_tokens))
    print(f"router adds at most {LIMIT_MS:g} ms to the median: {'yes' if met else 'NO'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
