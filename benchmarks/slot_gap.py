"""How long an answer waits between its first token and its second when there are more handovers than slots.

    .venv/bin/python benchmarks/slot_gap.py --answers 48 --slots 16 --routers 3

One prefill and one decode worker, and routers that share them, all in one process: real sessions, UCX over TCP, a random model.
A gap in steps is how many steps the decode engine began between the moments at which the router passed on the two tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from typing import Any

from prometheus_client import CollectorRegistry

from rtp_llm._native import _engine
from rtp_llm.config import Config, RouterSettings, load_config
from rtp_llm.directory import Member, StaticMembership
from rtp_llm.engine import NativeEngine
from rtp_llm.metrics import RouterMetrics
from rtp_llm.request import Request
from rtp_llm.router.dispatcher import Dispatcher
from rtp_llm.router.fleet import Fleet
from rtp_llm.router.placement.least_loaded import LeastLoaded
from rtp_llm.sampling_params import SamplingParams
from rtp_llm.wire.endpoint import SessionTiming
from rtp_llm.worker.worker import Worker


def engine(config: Config, slots: int, hidden: int) -> NativeEngine:
    device = _engine.open_device("cpu", num_threads=1)
    model = {
        "architecture": "LlamaForCausalLM",
        "vocab_size": 512,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 1024,
        "dtype": "float32",
    }
    weights = _engine.Weights(device, _engine.ModelConfig(**model))
    weights.write_random(7)
    weights.finish()
    native = _engine.Engine(
        device,
        _engine.Decoder(device, weights),
        _engine.EngineConfig(
            max_num_batched_tokens=256,
            max_num_seqs=slots,
            max_model_len=512,
            block_tokens=16,
            kv_pool_bytes=0,
            num_kv_blocks=2048,
            kv_dtype="float32",
            enable_prefix_caching=True,
            layers_per_message=2,
            itl_target_s=0.05,
            eos_token_ids=[],
        ),
    )
    return NativeEngine(device=device, native=native, weights=weights, dtype="float32")


async def answer(router: Dispatcher, decode: Any, number: int, tokens: int) -> dict[str, float]:
    """When its first two tokens came, and how many steps the decode engine had made then."""
    prompt = [(number * 31 + 7 * at) % 512 for at in range(64)]
    sampling = SamplingParams(temperature=0.0, seed=1, max_tokens=tokens, ignore_eos=True)
    begin, moments = time.monotonic(), []
    async for batch in router.generate(Request(request_id=str(number), prompt=prompt, sampling=sampling), number):
        for _ in batch:
            if len(moments) < 2:
                moments.append((time.monotonic(), decode.load().steps))
    (first, before), (second, after) = moments
    return {"ttft": first - begin, "gap": second - first, "steps": after - before}


async def run(arguments: argparse.Namespace) -> None:
    config = load_config(
        overrides={"model.served_name": "random", "transfer.mode": "tcp", "handover.router_expiry_s": 1.0}, environ={}
    )
    workers = [
        Worker(config, pool, pool, engine(config, slots, arguments.hidden))
        for pool, slots in (("prefill", 64), ("decode", arguments.slots))
    ]
    for worker in workers:
        await worker.start()
    members = [
        Member(id=worker.key.id, epoch=worker.key.epoch, pool=worker.key.id, address=worker.address)
        for worker in workers
    ]
    routers, fleets = [], []
    for number in range(arguments.routers):
        metrics = RouterMetrics(CollectorRegistry())
        fleet = Fleet(StaticMembership(members), "random", f"r{number}", 100 + number, SessionTiming(), metrics)
        routers.append(Dispatcher(fleet, LeastLoaded(), RouterSettings(), metrics))
        fleet.start()
        await fleet.wait_ready(10, 2)
        fleets.append(fleet)
    decode = workers[1]._engine
    asked = [answer(routers[n % len(routers)], decode, n + 1, arguments.tokens) for n in range(arguments.answers)]
    figures = await asyncio.gather(*asked)
    for name, unit in (("ttft", 1e3), ("gap", 1e3), ("steps", 1)):
        values = sorted(figure[name] * unit for figure in figures)
        print(
            f"{name:6} median {statistics.median(values):8.1f}  max {values[-1]:8.1f}  {'ms' if unit > 1 else 'steps'}"
        )
    counts = workers[1]._transfer.counts()
    print(
        f"step {decode.load().step.seconds * 1e3:.1f} ms; committed {counts['committed_received']}, no room {counts['no_room']}"
    )
    for fleet in fleets:
        await fleet.close()
    for worker in workers:
        await worker.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=48)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--routers", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=60, help="of each answer")
    parser.add_argument("--hidden", type=int, default=512, help="the model's width: how long a step takes")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
