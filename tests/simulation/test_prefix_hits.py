"""Prefix caches of simulated workers, and policies that know them, on drawn conversations."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from rtp_llm.router.placement.cost import Cost
from rtp_llm.router.placement.least_loaded import LeastLoaded
from rtp_llm.router.placement.prefix_aware import PrefixAware
from rtp_llm.simulation.prefix_cache import SimulatedPrefixCache
from rtp_llm.simulation.prefix_hits import Oracle, most, run
from rtp_llm.simulation.request import SimulatedRequest
from tests.simulation.test_simulation import ENGINE

BLOCK = ENGINE.block_tokens


def block(number: int) -> bytes:
    return number.to_bytes(16, "little")


def conversations(count: int, turns: int, seed: int) -> list[SimulatedRequest]:
    """All begin with the same 8 blocks; each turn's prompt is the one before and 4 to 12 blocks more."""
    draw = random.Random(seed)
    asked = []
    for number in range(count):
        hashes = [block(place) for place in range(8)]
        arrival = draw.uniform(0, 20)
        for turn in range(turns):
            hashes += [block(1000 * (number * turns + turn + 1) + place) for place in range(draw.randrange(4, 13))]
            asked.append((arrival, tuple(hashes)))
            arrival += draw.uniform(2, 8)
    return [
        SimulatedRequest(
            number=number,
            arrival=arrival,
            prompt_tokens=len(hashes) * BLOCK + 5,
            output_tokens=20,
            block_hashes=hashes,
        )
        for number, (arrival, hashes) in enumerate(sorted(asked))
    ]


def test_a_run_of_leading_blocks_is_a_hit_and_the_least_recently_released_is_evicted() -> None:
    cache = SimulatedPrefixCache(BLOCK)
    assert all(cache.insert(block(number)) for number in (1, 2, 3))
    assert not cache.insert(block(2))
    cache.release([block(1), block(2), block(3)])
    assert cache.match([block(1), block(2), block(9)], 8) == [block(1), block(2)]
    assert cache.match([block(3)], 0) == []
    cache.evict(0)  # what is referred to stays
    assert set(cache.known) == {block(1), block(2)}
    cache.release([block(1), block(2)])
    cache.evict(BLOCK)
    assert cache.known == (block(1),)
    stored, evicted = (b"\1" + block(number) for number in (1, 2, 3)), (b"\2" + block(number) for number in (3, 2))
    assert cache.take_events() == b"".join((*stored, *evicted))


def test_a_hit_is_not_computed_again_and_what_the_receiver_has_not_sent() -> None:
    first = conversations(1, 1, seed=1)[0]
    again = replace(first, number=1, arrival=first.arrival + 5)
    hits = run(PrefixAware(), ENGINE, 1, 1, [first, again])
    assert hits.computed == hits.received == pytest.approx((first.prompt_tokens - 5) / (2 * first.prompt_tokens))


@pytest.mark.parametrize("num_decode", [0, 4])
@pytest.mark.parametrize("pools", [3.0, 1.0])
def test_prefix_aware_finds_what_an_oracle_finds(pools: float, num_decode: int) -> None:
    """Within 2%. `pools`: what all KV pools of prefill workers hold, of all that is asked."""
    found = {Oracle: 0.0, PrefixAware: 0.0, LeastLoaded: 0.0}
    for seed in range(2):
        requests = conversations(80, 5, seed)
        distinct = len({hash for request in requests for hash in request.block_hashes}) * BLOCK
        engine = replace(ENGINE, kv_tokens=int(pools * distinct / 4))
        hits = {make: run(make(), engine, 4, num_decode, requests).computed for make in found}
        assert hits[Oracle] <= most(requests, BLOCK)
        for make in found:
            found[make] += hits[make]
    assert found[PrefixAware] >= 0.98 * found[Oracle]
    assert found[PrefixAware] > 1.1 * found[LeastLoaded]


def test_cost_finds_more_than_least_loaded_and_answers_sooner() -> None:
    requests = conversations(80, 5, seed=3)
    costs = Cost(ttft_target_s=0.5, itl_target_s=0.02)
    found, blind = (run(policy, ENGINE, 4, 4, requests) for policy in (costs, LeastLoaded()))
    assert found.computed > 1.3 * blind.computed
    assert found.median_ttft_s < blind.median_ttft_s
