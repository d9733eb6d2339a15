"""A trace replayed over HTTP, in real time, by autoscaled pools and by pools of fixed size, on a Ray of their own.

    .venv/bin/python benchmarks/autoscaling.py --trace mooncake.jsonl --seconds 600 --speed 0.3 --fixed 1:1,2:1

The demo model; lengths of the trace by 16, at most 1,900. Every answer is compared with that of one engine which nobody
disturbs: a token that is lost or repeated shows in its text. Prints, for each size, failures, wrong answers, the part of the
requests within both targets, and the workers' seconds from their entering the fleet to their leaving it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rtp_llm import LLM, SamplingParams
from rtp_llm.config import DEMO_MODEL
from rtp_llm.load.workload import Arrival, Trace
from tests.serve.deployment import Deployment

LONGEST = 1900
VOCABULARY = 1000
SAMPLE_S = 0.5
SCALED = {
    pool: [f"--{pool}.autoscaling.{name}={value}" for name, value in limits.items()]
    for pool, limits in {
        "prefill": {"min": 1, "max": 3, "downscale-delay-s": 30},
        "decode": {"min": 1, "max": 3, "downscale-delay-s": 30},
    }.items()
}


@dataclass
class Answer:
    """Times in seconds since the replay began."""

    due: float
    text: str = ""
    first: float | None = None
    last: float = 0.0
    tokens: int = 0
    error: str = ""

    def meets(self, ttft_s: float, itl_s: float) -> bool:
        if self.error or self.first is None:
            return False
        return self.first - self.due <= ttft_s and (self.last - self.first) / max(self.tokens - 1, 1) <= itl_s


async def ask(client: httpx.AsyncClient, url: str, arrival: Arrival, begin: float) -> Answer:
    answer = Answer(arrival.due_s)
    await asyncio.sleep(max(begin + arrival.due_s - time.perf_counter(), 0))
    body = {
        "prompt": list(arrival.prompt),
        "max_tokens": arrival.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    try:
        async with client.stream("POST", f"{url}/v1/completions", json=body) as response:
            if response.status_code != 200:
                answer.error = (await response.aread()).decode()[:200]
                return answer
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    take(json.loads(line[6:]), time.perf_counter() - begin, answer)
    except httpx.HTTPError as error:
        answer.error = repr(error)
    return answer


def take(event: dict[str, Any], at: float, answer: Answer) -> None:
    if "error" in event:
        answer.error = str(event["error"])
    for choice in event.get("choices", ()):
        if choice.get("text") or choice.get("finish_reason"):
            answer.text += choice["text"]
            answer.first = at if answer.first is None else answer.first
            answer.last = at
    if usage := event.get("usage"):
        answer.tokens = usage["completion_tokens"]


async def count_workers(deployment: Deployment, seconds: dict[str, float], most: dict[str, int]) -> None:
    """Until it is cancelled."""
    at = time.perf_counter()
    while True:
        await asyncio.sleep(SAMPLE_S)
        metrics = await asyncio.to_thread(deployment.metrics)
        before, at = at, time.perf_counter()
        for pool in seconds:
            number = int(metrics.total("rtp_llm_workers", pool=pool))
            seconds[pool] += number * (at - before)
            most[pool] = max(most[pool], number)


async def replay(deployment: Deployment, arrivals: Sequence[Arrival]) -> tuple[list[Answer], dict[str, Any]]:
    seconds, most = dict.fromkeys(("prefill", "decode"), 0.0), dict.fromkeys(("prefill", "decode"), 0)
    counting = asyncio.ensure_future(count_workers(deployment, seconds, most))
    async with httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None)) as client:
        begin = time.perf_counter()
        answers = await asyncio.gather(*(ask(client, deployment.url, each, begin) for each in arrivals))
    counting.cancel()
    losses = deployment.metrics().total("rtp_llm_worker_losses_total")
    return list(answers), {"worker_seconds": seconds, "most_workers": most, "losses": losses}


def expected(arrivals: Sequence[Arrival]) -> list[str]:
    """What one engine says, undisturbed."""
    with LLM(model=DEMO_MODEL) as llm:
        params = [SamplingParams(max_tokens=each.output_tokens, temperature=0, ignore_eos=True) for each in arrivals]
        return [each.outputs[0].text for each in llm.generate([list(each.prompt) for each in arrivals], params)]


def measure(
    options: argparse.Namespace, name: str, arrivals: Sequence[Arrival], texts: Sequence[str]
) -> dict[str, Any]:
    flags = [f"--router.ttft-target-ms={options.ttft_ms:g}", f"--engine.itl-target-ms={options.itl_ms:g}"]
    if name == "autoscaled":
        flags += SCALED["prefill"] + SCALED["decode"] + options.flags.split()
    else:
        prefill, decode = name.split(":")
        flags += ["--prefill", prefill, "--decode", decode]
    deployment = Deployment(*flags)
    try:
        answers, found = asyncio.run(replay(deployment, arrivals))
    finally:
        deployment.stop()
    wrong = sum(not each.error and each.text != text for each, text in zip(answers, texts, strict=True))
    met = sum(each.meets(options.ttft_ms / 1000, options.itl_ms / 1000) for each in answers)
    first = sorted(each.first - each.due for each in answers if each.first is not None)
    return {
        "size": name,
        "requests": len(answers),
        "failed": sum(bool(each.error) for each in answers),
        "wrong": wrong,
        "attainment": met / len(answers),
        "ttft_p50_ms": 1000 * first[len(first) // 2],
        "ttft_p99_ms": 1000 * first[len(first) * 99 // 100],
        **found,
        "answers": [asdict(each) for each in answers] if options.json is not None else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--speed", type=float, default=0.3, help="of the trace's rate")
    parser.add_argument("--fixed", default="", help="sizes beside it, prefill:decode, with commas between")
    parser.add_argument("--flags", default="", help="more of `rtp-llm serve`, where pools are autoscaled")
    parser.add_argument("--no-autoscaled", action="store_true", help="fixed sizes alone")
    parser.add_argument("--ttft-ms", type=float, default=2000.0)
    parser.add_argument("--itl-ms", type=float, default=100.0)
    parser.add_argument("--json", type=Path, help="an object a size, each answer in it, a line")
    options = parser.parse_args()
    trace = Trace(options.trace, divide=16, longest=LONGEST, speed=options.speed)
    number = sum(line.due_s < options.seconds for line in trace.lines(None))
    arrivals = list(trace.arrivals(number, VOCABULARY, seed=0))
    tokens = sum(len(each.prompt) for each in arrivals)
    print(
        f"{number} requests, {number / options.seconds:.2f}/s, {tokens / options.seconds:.0f} prompt tokens/s",
        flush=True,
    )
    texts = expected(arrivals)
    names = [*([] if options.no_autoscaled else ["autoscaled"]), *filter(None, options.fixed.split(","))]
    for name in names:
        found = measure(options, name, arrivals, texts)
        spent, most = found["worker_seconds"], found["most_workers"]
        print(
            f"{name:>10}: {found['failed']} failed, {found['wrong']} wrong, {found['losses']:.0f} workers lost, "
            f"{found['attainment']:.1%} in time, TTFT p50 {found['ttft_p50_ms']:.0f} p99 {found['ttft_p99_ms']:.0f} ms, "
            f"worker-seconds {spent['prefill']:.0f} + {spent['decode']:.0f}, at most {most['prefill']} + {most['decode']}",
            flush=True,
        )
        if options.json is not None:
            with options.json.open("a") as file:
                file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
