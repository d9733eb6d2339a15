"""From workers' prefix caches to a router's index: whatever is lost on the way, it ends up equal."""

import random
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from rtp_llm.errors import ProtocolError
from rtp_llm.router.cache_feed import CacheFeed
from rtp_llm.router.placement import CacheChanged, CacheReset, WorkerGone
from rtp_llm.router.placement.prefix_index import PrefixIndex
from rtp_llm.wire.v1.router_pb2 import WorkerMessage
from rtp_llm.worker.cache_watch import CacheWatch

NUM_BLOCKS = 48
EVENTS = 100_000


def block(number: int) -> bytes:
    return number.to_bytes(16, "little")


def split(hashes: bytes) -> list[bytes]:
    return sorted(hashes[start : start + 16] for start in range(0, len(hashes), 16))


def events(*numbers: int) -> bytes:
    return b"".join(b"\1" + block(number) for number in numbers)


class Worker:
    """A real block pool, what it tells one router, and the router's end; `lost` says whether a message is."""

    def __init__(self, id: str, pool: Any, index: PrefixIndex, lost: Callable[[], bool]) -> None:
        self.id, self.pool = id, pool
        self.num_gaps = self.num_snapshots = self.num_replays = 0
        self._index, self._lost = index, lost
        self._begin()

    def _begin(self) -> None:
        self._feed = CacheFeed(self.id)
        self._watch = CacheWatch(0)

    def known(self) -> list[bytes]:
        """The truth."""
        return split(self.pool.cache_snapshot()[1])

    def held(self) -> list[bytes]:
        """What the index says."""
        return split(self._index.hashes(self.id))

    @property
    def has_heard_all(self) -> bool:
        return not self._feed.has_gap and self._feed.next == self.pool.last_cache_event() + 1

    def pulse(self) -> None:
        if self._watch.misses_something(self.pool):
            self._watch.tell(self.pool, self._sent)

    def reconnect(self) -> None:
        self._index.observe([WorkerGone(self.id)])
        self._begin()

    def _sent(self, message: WorkerMessage) -> bool:
        if not self._lost():
            self._received(message)
        return True

    def _received(self, message: WorkerMessage) -> None:
        event: CacheReset | CacheChanged | None
        if message.HasField("cache_snapshot"):
            self.num_snapshots += 1
            event = self._feed.snapshot(message.cache_snapshot.number, message.cache_snapshot.hashes)
        else:
            event = self._feed.events(message.cache_events.first, message.cache_events.events)
        if event is not None:
            self._index.observe([event])
        elif self._feed.has_gap:
            self.num_gaps += 1
            self.num_replays += self._feed.next > 0
            if not self._lost():  # WatchCache
                self._watch = CacheWatch(self._feed.next)


def test_after_a_hundred_thousand_events_with_lost_messages_the_index_equals_the_caches(
    prefix_cache: ModuleType,
) -> None:
    draw = random.Random(1)
    index = PrefixIndex()
    loses = True
    workers = [
        Worker(f"w{number}", prefix_cache.BlockPool(NUM_BLOCKS, 16), index, lambda: loses and draw.random() < 0.1)
        for number in range(8)
    ]
    while sum(worker.pool.last_cache_event() for worker in workers) < EVENTS:
        worker = draw.choice(workers)
        for _ in range(600 if draw.random() < 0.01 else draw.choice([1, 5, 20])):  # 600: more than the log holds
            worker.pool.store(block(draw.randrange(200)))
            if draw.random() < 0.05:
                worker.pool.withdraw(block(draw.randrange(200)))
        worker.pulse()
        if worker.has_heard_all and draw.random() < 0.1:
            assert worker.held() == worker.known()
        if draw.random() < 0.01:
            worker.reconnect()
    loses = False
    for worker in workers:
        for _ in range(3):  # what shows the last loss, the answer to it, and all is told
            worker.pool.store(block(1000 + worker.pool.last_cache_event()))
            worker.pulse()
    for worker in workers:
        assert worker.has_heard_all and worker.held() == worker.known()
        assert worker.num_gaps > 10 and worker.num_snapshots > 3 and worker.num_replays > 3


def test_a_gap_is_seen_and_what_comes_after_it_dropped_until_an_answer_fits() -> None:
    feed = CacheFeed("w")
    assert feed.has_gap and feed.next == 0
    assert feed.events(1, events(1)) is None and feed.has_gap
    assert feed.snapshot(7, block(1)) == CacheReset("w", block(1))
    assert not feed.has_gap and feed.next == 8
    assert feed.events(8, events(2, 3)) == CacheChanged("w", events(2, 3))
    assert feed.events(11, events(5)) is None
    assert feed.has_gap and feed.next == 10
    assert feed.events(10, events(4, 5)) == CacheChanged("w", events(4, 5))
    assert not feed.has_gap and feed.next == 12


def test_what_is_told_again_is_taken_once() -> None:
    feed = CacheFeed("w")
    feed.snapshot(3, b"")
    assert feed.events(2, events(2, 3)) is None and not feed.has_gap
    assert feed.events(3, events(3, 4, 5)) == CacheChanged("w", events(4, 5))
    assert feed.next == 6


@pytest.mark.parametrize(("first", "size"), [(1, 18), (0, 17)])
def test_what_is_no_event_is_refused(first: int, size: int) -> None:
    with pytest.raises(ProtocolError, match=f"{size} bytes of cache events from number {first}"):
        CacheFeed("w").events(first, bytes(size))


def test_what_is_no_snapshot_is_refused() -> None:
    with pytest.raises(ProtocolError, match="17 bytes"):
        CacheFeed("w").snapshot(1, bytes(17))
