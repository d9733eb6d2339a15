"""The policy `prefix_aware` and the index that it looks into, over written-out fleets."""

import random
from collections import Counter
from typing import Any

from rtp_llm.router.placement import (
    DECODE,
    PREFILL,
    CacheChanged,
    CacheReset,
    FleetEvent,
    Placement,
    PlacementQuery,
    ViewChanged,
    WorkerGone,
    WorkerView,
)
from rtp_llm.router.placement.prefix_aware import PrefixAware
from rtp_llm.router.placement.prefix_index import PrefixIndex

BLOCK = 16
PROMPT_BLOCKS = 8
PROMPT = PROMPT_BLOCKS * BLOCK


def hashes(count: int, block_tokens: int = BLOCK, prompt: int = 0) -> bytes:
    """Of the first blocks of a prompt: equal at common borders whatever the size of blocks."""
    return b"".join(bytes([prompt]) + ((n + 1) * block_tokens).to_bytes(15, "little") for n in range(count))


def worker(name: str, pool: str = PREFILL, **fields: Any) -> WorkerView:
    fields = {"max_queued_tokens": 1 << 20, "free_blocks": 1000, "block_tokens": BLOCK, "free_slots": 9, **fields}
    return WorkerView(id=name, epoch=1, pool=pool, **fields)


class Rig:
    def __init__(self, views: list[WorkerView], **blocks: int) -> None:
        """`blocks`: how many of the prompt's each worker holds."""
        self.views = {view.id: view for view in views}
        self.policy = PrefixAware()
        self.tell(*(ViewChanged(view) for view in views))
        self.tell(*(CacheReset(id, hashes(count)) for id, count in blocks.items()))
        self.random = random.Random(1)

    def tell(self, *events: FleetEvent) -> None:
        self.policy.observe(events)

    def choose(self, **fields: Any) -> tuple[str, str | None] | None:
        query = {
            "prompt_tokens": PROMPT,
            "total_tokens": PROMPT + 9,
            "block_hashes": lambda size: hashes(PROMPT // size, size),
            "random": self.random,
            **fields,
        }
        placement: Placement | None = self.policy.choose(self.views, PlacementQuery(**query))
        return placement and (placement.sender.id, placement.receiver.id if placement.receiver else None)


def test_a_prompt_goes_where_most_of_it_lies() -> None:
    rig = Rig([worker(name) for name in "abc"], a=2, b=5, c=1)
    assert {rig.choose() for _ in range(9)} == {("b", None)}


def test_a_hit_is_worth_as_many_tokens_as_it_saves_and_a_queue_costs_those_that_wait() -> None:
    rig = Rig([worker("idle"), worker("holds", queued_tokens=4 * BLOCK - 1)], holds=4)
    assert rig.choose() == ("holds", None)
    rig = Rig([worker("idle"), worker("holds", queued_tokens=4 * BLOCK + 1)], holds=4)
    assert rig.choose() == ("idle", None)


def test_the_receiver_is_the_one_that_lacks_the_least() -> None:
    pairs = [worker("p0"), worker("p1"), worker("d0", DECODE), worker("d1", DECODE)]
    assert {Rig(pairs, p1=3, d0=2).choose() for _ in range(9)} == {("p1", "d0")}
    busy = [worker("p0"), worker("d0", DECODE, context_tokens=40), worker("d1", DECODE)]
    assert Rig(busy, d0=2).choose() == ("p0", "d1")
    assert Rig(busy, d0=3).choose() == ("p0", "d0")


def test_a_receiver_without_room_for_the_prompt_is_passed_over_whatever_it_holds() -> None:
    views = [worker("p"), worker("d0", DECODE, free_blocks=PROMPT_BLOCKS), worker("d1", DECODE, context_tokens=900)]
    assert Rig(views, d0=8).choose() == ("p", "d1")
    views = [worker("p"), worker("d0", DECODE, free_slots=0), worker("d1", DECODE)]
    assert Rig(views, d0=8).choose() == ("p", "d1")


def test_in_a_large_fleet_those_are_looked_at_that_hold_something_though_many_are_less_loaded() -> None:
    views = [worker(f"p{n:02}") for n in range(50)] + [worker(f"d{n:02}", DECODE) for n in range(50)]
    views += [worker("p", queued_tokens=9), worker("d", DECODE, context_tokens=9)]
    assert Rig(views, p=3, d=3).choose() == ("p", "d")


def test_equals_are_chosen_by_lot() -> None:
    rig = Rig([worker(f"w{number:02}") for number in range(50)], **{f"w{number:02}": 3 for number in range(40)})
    chosen = Counter(rig.choose() for _ in range(2000))
    assert {int(sender[1:]) for sender, _ in filter(None, chosen)} == set(range(40))
    assert max(chosen.values()) < 3 * 2000 / 40


def test_the_last_token_is_computed_whatever_is_cached() -> None:
    index = PrefixIndex()
    view = worker("a")
    index.observe([ViewChanged(view), CacheReset("a", hashes(8))])
    for prompt, saved in ((PROMPT, PROMPT - BLOCK), (PROMPT + 1, PROMPT), (BLOCK, 0), (BLOCK + 1, BLOCK)):
        query = PlacementQuery(prompt_tokens=prompt, block_hashes=lambda size, prompt=prompt: hashes(prompt // size))
        assert index.hits(query).tokens(view) == saved


def test_pools_of_unequal_blocks_meet_at_common_borders() -> None:
    index = PrefixIndex()
    small, large = worker("small"), worker("large", block_tokens=4 * BLOCK)
    index.observe([ViewChanged(small), ViewChanged(large)])
    index.observe([CacheReset("small", hashes(5)), CacheReset("large", hashes(1, 4 * BLOCK))])
    query = PlacementQuery(prompt_tokens=PROMPT, block_hashes=lambda size: hashes(PROMPT // size, size))
    hits = index.hits(query)
    assert (hits.tokens(small), hits.tokens(large)) == (5 * BLOCK, 4 * BLOCK)
    assert set(hits.longest(4)) == {"small", "large"}
    index.observe([WorkerGone("small")])
    assert list(index.hits(query).longest(4)) == ["large"]


def test_a_worker_that_is_gone_holds_nothing_until_it_says_so_again() -> None:
    rig = Rig([worker("a"), worker("b")], a=8, b=4)
    rig.tell(WorkerGone("a"))
    stored = b"".join(b"\1" + hashes(8)[start : start + 16] for start in range(0, 8 * 16, 16))
    rig.tell(CacheChanged("a", stored))  # on its way when it went
    rig.tell(ViewChanged(rig.views["a"]))
    assert rig.choose() == ("b", None)
    rig.tell(CacheReset("a", hashes(6)))
    assert rig.choose() == ("a", None)


def test_what_is_evicted_or_cleared_is_no_hit() -> None:
    rig = Rig([worker("a"), worker("b")], a=8, b=2)
    rig.tell(CacheChanged("a", b"\2" + hashes(2)[16:]))  # its second block: the rest is no use
    assert rig.choose() == ("b", None)
    rig.tell(CacheChanged("a", b"\1" + hashes(2)[16:]))
    assert rig.choose() == ("a", None)
    rig.tell(CacheChanged("a", b"\3" + bytes(16)))
    assert rig.choose() == ("b", None)


def test_a_prompt_is_hashed_only_where_a_cache_is_known() -> None:
    def block_hashes(size: int) -> bytes:
        raise AssertionError("nobody has anything")

    assert Rig([worker("a")]).choose(block_hashes=block_hashes) == ("a", None)
    assert Rig([worker("a")], a=8).choose(block_hashes=None) == ("a", None)
