"""What placement costs a router: the time of a decision in a large fleet, and the cores that fleet, policy and Loads take.

The real Fleet and policy; sessions say what the benchmark makes them say, messages are parsed from bytes as gRPC would. No
HTTP, no tokenizing, no RPC.

    python benchmarks/placement.py --workers 1000            # decision time, Loads of all at 10/s
    python benchmarks/placement.py --workers 64              # cores at 1,000 placements/s
    python benchmarks/placement.py --policy prefix_aware --cached-blocks 2000   # each worker's prefix cache holds so many

Each decision is followed by an empty loop of about the same time: what that one's slowest take, the machine took.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import statistics
import time
from collections import deque
from typing import Any

from prometheus_client import CollectorRegistry

from rtp_llm.config import load_config
from rtp_llm.directory import Member, StaticMembership
from rtp_llm.metrics import RouterMetrics
from rtp_llm.prefix import BLOCK_HASH_BYTES, CACHE_EVENT_BYTES, block_hashes
from rtp_llm.router import fleet as fleet_module
from rtp_llm.router.fleet import Fleet
from rtp_llm.router.placement import FleetEvent, PlacementQuery, Policy, policy_of, watches_caches
from rtp_llm.router.prompt_hashes import PromptHashes
from rtp_llm.wire.key import RequestKey, WorkerKey
from rtp_llm.wire.session import SessionTiming
from rtp_llm.wire.v1 import router_pb2 as pb
from rtp_llm.wire.v1.types_pb2 import WorkerKey as WorkerKeyMessage

LOADS_A_SECOND = 10  # of each worker
SLOTS = 256
DIGEST = "d" * 64  # of the model
BLOCK_TOKENS = 64
PROMPT_TOKENS = 1024
SYSTEM_TOKENS = 256  # of these, with which all begin
CONVERSATIONS = 2000
HOLDERS = 4  # of each
SESSIONS = 2000
EMPTY_LOOP_S = 100e-6
STEPS: list[dict[str, Any]] = [
    {"decode_rows": 30, "context_tokens": 30000, "seconds": 0.0054},
    {"decode_rows": 90, "context_tokens": 90000, "seconds": 0.0084},
    {"decode_rows": 60, "context_tokens": 60000, "prefill_rows": 256, "attention_pairs": 150000, "seconds": 0.0092},
    {"prefill_rows": 1024, "attention_pairs": 524800, "seconds": 0.0245},
]


class Session:
    """In place of the wire."""

    is_connected = True
    failure = ""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def start(self) -> None: ...

    def send(self, message: pb.RouterMessage) -> bool:
        return True

    async def close(self) -> None: ...


class Listener:
    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def observe(self, event: FleetEvent) -> None:
        self._policy.observe([event])

    def room_changed(self) -> None: ...

    def said(self, said: Any) -> None: ...

    def lost(self, worker: WorkerKey) -> None: ...


def load(draw: random.Random) -> bytes:
    """Of a worker that is busy and takes more."""
    said = pb.Load(
        queued_tokens=draw.randrange(8000),
        max_queued_tokens=1 << 30,
        running=draw.randrange(100),
        blocks_free=draw.randrange(2000, 10000),
        blocks_total=10000,
        step=pb.StepSample(**draw.choice(STEPS)),
        block_tokens=BLOCK_TOKENS,
        slots=SLOTS,
        slots_of_others=draw.randrange(64),
    )
    return pb.WorkerMessage(load=said).SerializeToString()


async def fleet_of(num_workers: int, policy: Policy, draw: random.Random) -> Fleet:
    fleet_module.WorkerSession = Session  # type: ignore[assignment, misc]
    pools = ["prefill" if i % 4 == 0 else "decode" for i in range(num_workers)]
    members = [Member(id=f"w{i:04}", epoch=0, pool=pool, address=f"w{i}:1") for i, pool in enumerate(pools)]
    metrics = RouterMetrics(CollectorRegistry())
    watches = watches_caches(policy)
    fleet = Fleet(StaticMembership(members), "m", "r", 7, SessionTiming(), metrics, watches_caches=watches)
    fleet.listener = Listener(policy)  # type: ignore[assignment]
    fleet.start()
    await asyncio.sleep(0.01)
    for member in members:
        worker = fleet._workers[member.id]
        hello = pb.WorkerHello(
            worker=WorkerKeyMessage(id=member.id, epoch=1), pool=member.pool, model="m", model_digest=DIGEST
        )
        worker.connected(pb.WorkerMessage(hello=hello), resumed=False)
        worker.message(pb.WorkerMessage.FromString(load(draw)))
    return fleet


class Caches:
    """Prefix caches that all hold what prompts begin with; each prompt lies in some, what nobody asks for fills the rest. As
    many blocks come as go."""

    def __init__(self, fleet: Fleet, draw: random.Random, blocks: int, events_a_message: int) -> None:
        self._draw = draw
        self._events_a_message = max(events_a_message, 2)
        system = [draw.randrange(1 << 17) for _ in range(SYSTEM_TOKENS)]
        more = PROMPT_TOKENS - SYSTEM_TOKENS
        self.prompts = [[*system, *(draw.randrange(1 << 17) for _ in range(more))] for _ in range(CONVERSATIONS)]
        self._hashes = [block_hashes(prompt, BLOCK_TOKENS, DIGEST, "") for prompt in self.prompts]
        self._next: dict[str, int] = {}
        workers = [worker.member.id for worker in fleet.live()]
        held = {worker: [self._hashes[0][: SYSTEM_TOKENS // BLOCK_TOKENS * BLOCK_HASH_BYTES]] for worker in workers}
        for hashes in self._hashes:
            for worker in draw.sample(workers, k=HOLDERS):
                held[worker].append(hashes)
        for worker in fleet.live():
            known = b"".join(held[worker.member.id])
            other = draw.randbytes(max(blocks * BLOCK_HASH_BYTES - len(known), 0))
            worker.message(pb.WorkerMessage(cache_snapshot=pb.CacheSnapshot(number=0, hashes=known + other)))
            self._next[worker.member.id] = 1

    def changed(self, worker: str) -> bytes:
        """A message of `worker`."""
        hashes = [self._draw.randbytes(BLOCK_HASH_BYTES) for _ in range(self._events_a_message // 2)]
        events = b"".join(kind + hash for kind in (b"\1", b"\2") for hash in hashes)
        first = self._next[worker]
        self._next[worker] += len(events) // CACHE_EVENT_BYTES
        return pb.WorkerMessage(cache_events=pb.CacheEvents(first=first, events=events)).SerializeToString()


def query(draw: random.Random, caches: Caches | None) -> PlacementQuery:
    hashes = None if caches is None else PromptHashes(draw.choice(caches.prompts), DIGEST, "")
    return PlacementQuery(
        prompt_tokens=PROMPT_TOKENS,
        total_tokens=PROMPT_TOKENS + 256,
        block_hashes=hashes,
        session=f"session {draw.randrange(SESSIONS)}",
        random=draw,
        now=time.monotonic(),
    )


class Requests:
    """Placements under way: each is noted, spoken of, and over, as the dispatcher tells the fleet."""

    def __init__(self, fleet: Fleet, policy: Policy, draw: random.Random, stay: int, caches: Caches | None) -> None:
        self._fleet, self._policy, self._draw, self._caches = fleet, policy, draw, caches
        self._number = 0
        self._stay = stay  # placements between the first token and the end of one
        self._placed: deque[tuple[RequestKey, list[Any]]] = deque()
        self._spoken: deque[tuple[RequestKey, list[Any]]] = deque()

    def place(self) -> float:
        """Seconds of the decision."""
        asked = query(self._draw, self._caches)
        began = time.perf_counter()
        placement = self._policy.choose(self._fleet.snapshot, asked)
        took = time.perf_counter() - began
        if placement is None:
            raise SystemExit("nobody takes a request: the benchmark's fleet is too small")
        self._number += 1
        key = RequestKey(7, self._number, 0, 0)
        sender = self._fleet.find(WorkerKey(placement.sender.id, placement.sender.epoch))
        assert sender is not None
        workers = [sender]
        if placement.receiver is not None:
            receiver = self._fleet.find(WorkerKey(placement.receiver.id, placement.receiver.epoch))
            assert receiver is not None
            receiver.note_receives(key, asked.prompt_tokens)
            workers.append(receiver)
        sender.note_submitted(key, asked.prompt_tokens, runs=placement.receiver is None)
        self._placed.append((key, workers))
        self._go_on()
        return took

    def _go_on(self) -> None:
        if len(self._placed) > self._stay // 4:
            key, workers = self._placed.popleft()
            for worker in workers:  # the first token came, then R's own
                worker.forget(key)
            self._spoken.append((key, workers))
        if len(self._spoken) > self._stay:
            key, workers = self._spoken.popleft()
            for worker in workers:
                worker.note_over(key)


def empty_loop(turns: int) -> float:
    """Its seconds."""
    began = time.perf_counter()
    for _ in range(turns):
        pass
    return time.perf_counter() - began


def empty_loop_turns() -> int:
    """Of one that takes EMPTY_LOOP_S."""
    return round(1000 * EMPTY_LOOP_S / statistics.median(empty_loop(1000) for _ in range(999)))


async def run(args: argparse.Namespace) -> None:
    draw = random.Random(0)
    policy = policy_of(load_config(overrides={"router.policy": args.policy}, environ={}))
    fleet = await fleet_of(args.workers, policy, draw)
    workers = fleet.live()
    loads = [load(draw) for _ in range(4096)]
    caches = None
    if args.cached_blocks:  # a prompt's blocks come to S and to R, and as many go
        events = 4 * args.rate * PROMPT_TOKENS // BLOCK_TOKENS // (args.workers * LOADS_A_SECOND)
        caches = Caches(fleet, draw, args.cached_blocks, events)
    requests = Requests(fleet, policy, draw, stay=args.workers * 16, caches=caches)
    count = int(args.seconds * args.rate)
    loads_a_placement = args.workers * LOADS_A_SECOND / args.rate
    turns = empty_loop_turns()
    due, decisions, empty_loops, other_cpu = 0.0, [], [], 0.0
    gc.collect()
    gc.freeze()  # as a router does when it is up
    began = time.process_time()
    for _ in range(count):
        due += loads_a_placement
        while due >= 1:
            due -= 1
            worker = workers[draw.randrange(len(workers))]
            worker.message(pb.WorkerMessage.FromString(loads[draw.randrange(len(loads))]))
            if caches is not None:
                making = time.process_time()
                changed = caches.changed(worker.member.id)
                other_cpu += time.process_time() - making
                worker.message(pb.WorkerMessage.FromString(changed))
        decisions.append(requests.place())
        before = time.process_time()
        empty_loops.append(empty_loop(turns))
        other_cpu += time.process_time() - before
    cores = (time.process_time() - began - other_cpu) / args.seconds
    p50, p99 = statistics.median(decisions), statistics.quantiles(decisions, n=100)[98]
    print(
        f"policy {args.policy}  workers {args.workers}  placements_per_s {args.rate}  loads_per_s "
        f"{args.workers * LOADS_A_SECOND}  decision_p50_us {p50 * 1e6:.0f}  decision_p99_us {p99 * 1e6:.0f}  "
        f"empty_loop_p50_us {statistics.median(empty_loops) * 1e6:.0f}  "
        f"empty_loop_p99_us {statistics.quantiles(empty_loops, n=100)[98] * 1e6:.0f}  cores {cores:.2f}"
    )
    await fleet.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="least_loaded", help="a name, or a mixture as JSON")
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--rate", type=int, default=1000, help="placements a second")
    parser.add_argument(
        "--seconds", type=float, default=10, help="so many seconds' worth of work is done, as fast as it goes"
    )
    parser.add_argument(
        "--cached-blocks",
        type=int,
        default=0,
        help="blocks in each worker's prefix cache; with each Load come events of it; the decision hashes the prompt",
    )
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
