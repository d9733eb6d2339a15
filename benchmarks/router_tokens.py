"""What a token costs the router's process: frames read, text made of ids, an event written.

python benchmarks/router_tokens.py [--streams 32] [--tokens 256] [--rounds 5]

A router in this process, prefill and decode workers and the client in processes of their own; so the CPU time that this
process takes from the first request to the last event, over all of its threads, is the router's. The demo model, bf16, one
thread an engine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.cluster.cluster import Cluster

LIMIT = 8000.0
SETTINGS = {"engine.num_threads": 1, "engine.kv_cache_bytes": 64 << 20, "engine.max_num_seqs": 64}


async def stream(url: str, number: int, tokens: int) -> int:
    """Events with a choice in them."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    asked = {
        "prompt": [5 + number, 7, 9, 11],
        "max_tokens": tokens,
        "temperature": 1,
        "seed": number,
        "ignore_eos": True,
    }
    body = json.dumps(asked | {"stream": True})
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: router\r\nContent-Type: application/json\r\nConnection: close\r\n"
        + f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    answer = await reader.read(-1)
    writer.close()
    if b"data: [DONE]" not in answer:
        raise SystemExit(answer[:400].decode())
    return answer.count(b'"finish_reason"')


async def streams(url: str, count: int, tokens: int) -> int:
    return sum(await asyncio.gather(*(stream(url, number, tokens) for number in range(count))))


async def measure(options: argparse.Namespace) -> float:
    rates = []
    with tempfile.TemporaryDirectory() as logs:
        async with Cluster.running(prefill=1, decode=1, log_dir=Path(logs), settings=SETTINGS) as cluster:
            for number in range(options.rounds + 1):
                command = [sys.executable, __file__, "--client", cluster.url]
                command += ["--streams", str(options.streams), "--tokens", str(options.tokens)]
                client = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
                await asyncio.sleep(1.0)  # the client has started: what this process did for it is over
                began = time.process_time()
                client_said, _ = await client.communicate()
                if number:  # the first one warms up
                    rates.append(options.streams * options.tokens / (time.process_time() - began))
                    print(f"{rates[-1]:8.0f} tokens/s a core, {int(client_said)} events")
    return statistics.median(rates)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--client", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        time.sleep(1.5)
        print(asyncio.run(streams(options.client, options.streams, options.tokens)))
        return 0
    rate = asyncio.run(measure(options))
    print(f"median {rate:.0f} tokens/s a core, asked {LIMIT:.0f}: {'yes' if rate >= LIMIT else 'NO'}")
    return 0 if rate >= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
