"""AutoscalingPolicy: figures in, numbers of workers out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rtp_llm.autoscaling.figures import ApplicationFigures, PoolFigures, RouterFigures
from rtp_llm.autoscaling.policy import AutoscalingPolicy, PolicySettings
from rtp_llm.config import Pool, load_config

P, D = Pool.PREFILL, Pool.DECODE
SETTINGS = PolicySettings(
    least={"prefill": 0, "decode": 0},
    most={"prefill": 9, "decode": 9},
    queue_s=0.5,
    utilization=0.8,
    itl_s=0.05,
    occupancy=0.8,
    decode_per_prefill=None,
    window_s=15.0,
    interval_s=0.5,
)
COSTS = RouterFigures(
    prefill_token_s=1e-4, decode_token_s=2e-4, decode_base_s=0.01, decode_sequence_s=0.001, decode_context_s=1e-6
)
KV = 100_000.0  # tokens of a worker's pool


def pool(workers: int = 1, **figures: float) -> PoolFigures:
    sizes = {"slots": 100.0 * workers, "max_kv_tokens": KV * workers}
    return PoolFigures(**{"workers": workers, "target": workers, **sizes, **figures})  # type: ignore[arg-type]


def desired(
    prefill: PoolFigures, decode: PoolFigures, settings: PolicySettings = SETTINGS, **router: float
) -> tuple[int, int]:
    routers = [replace(COSTS, **router)]
    found = AutoscalingPolicy(settings).desired(ApplicationFigures(pools={P: prefill, D: decode}, routers=routers))
    return found[P], found[D]


# --- Prefill


@pytest.mark.parametrize(
    ("prompts", "tokens", "workers"),
    [
        (1, 40_000, 1),  # 4 s of work, but nobody waits for it; a second worker would have nothing to do
        (2, 10_000, 1),  # the second waits 0.5 s
        (2, 12_000, 2),
        (10, 50_000, 5),  # 0.5 s each: with 5 workers 4 of the last worker's are ahead… of 10, 5 are computed at once
        (1000, 20_000, 4),  # many short ones: all but their own 2 ms
    ],
)
def test_a_prompt_waits_at_most_its_part_of_the_ttft_target(prompts: int, tokens: int, workers: int) -> None:
    assert desired(pool(prompts=prompts, queued_tokens=tokens), pool())[0] == workers


def test_with_so_many_workers_the_wait_is_as_long_as_it_may_be_and_with_one_less_longer() -> None:
    for prompts in (2, 3, 7, 40):
        for tokens in (3_000, 30_000, 200_000):
            settings = replace(SETTINGS, most={"prefill": 10_000, "decode": 1})
            found, _ = desired(pool(prompts=prompts, queued_tokens=tokens), pool(), settings)

            def wait_s(workers: int, prompts: int = prompts, tokens: int = tokens) -> float:
                return tokens * 1e-4 / prompts * max(prompts - workers, 0) / workers

            assert wait_s(found) <= SETTINGS.queue_s + 1e-9
            assert found == 1 or wait_s(found - 1) > SETTINGS.queue_s


def test_what_waits_in_the_router_is_prefills_too() -> None:
    assert desired(pool(), pool(), waiting=2.0, waiting_tokens=12_000.0)[0] == 2


def test_what_waits_for_decode_workers_is_not_prefills() -> None:
    found = desired(pool(), pool(sequences=99.0, full=True), waiting=200.0, waiting_tokens=100_000.0)
    assert found[0] == 0 and found[1] > 1


def test_a_prefill_worker_computes_at_most_its_part_of_the_time() -> None:
    for rate, workers in ((7_000.0, 1), (8_000.0, 1), (8_100.0, 2), (16_100.0, 3)):
        assert desired(pool(prompt_tokens_per_s=rate), pool())[0] == workers


# --- Decode


def test_a_decode_step_takes_at_most_its_part_of_the_itl_target() -> None:
    """10 ms and 1 ms a sequence: 40 fit into 50 ms."""
    for sequences, workers in ((40.0, 1), (41.0, 2), (80.0, 2), (81.0, 3)):
        figures = pool(sequences=sequences, slots=1e9, decode_tokens_per_s=1.0)
        assert desired(pool(), figures)[1] == workers


def test_context_lengthens_a_step() -> None:
    figures = pool(sequences=20.0, kv_tokens=60_000.0, max_kv_tokens=1e9, slots=1e9, decode_tokens_per_s=1.0)
    assert desired(pool(), figures)[1] == 2  # 20 ms + 60 ms of 40


def test_an_itl_target_that_an_idle_worker_misses_is_not_chased() -> None:
    """Steps of half as long again as an idle worker's: 16.5 - 10 ms for what sequences add."""
    settings = replace(SETTINGS, itl_s=0.001)
    assert desired(pool(), pool(sequences=13.0, decode_tokens_per_s=1.0), settings)[1] == 2


def test_kv_and_slots_are_taken_at_most_in_part() -> None:
    quick = {"decode_base_s": 0.0, "decode_sequence_s": 0.0, "decode_context_s": 0.0}
    for kv, workers in ((80_000.0, 1), (81_000.0, 2), (161_000.0, 3)):
        assert desired(pool(), pool(sequences=1.0, kv_tokens=kv), **quick)[1] == workers
        two = pool(2, sequences=1.0, kv_tokens=kv)  # as many, however many there are
        assert desired(pool(), two, **quick)[1] == workers
    for sequences, workers in ((80.0, 1), (81.0, 2)):
        assert desired(pool(), pool(sequences=sequences), **quick)[1] == workers


def test_who_waits_for_decode_workers_is_counted_with_their_sequences() -> None:
    full = pool(sequences=10.0, slots=10.0, full=True)
    assert desired(pool(), full, waiting=10.0)[1] == 3  # 20 at 8 each
    assert desired(pool(), pool(sequences=5.0, slots=10.0), waiting=10.0)[1] == 1


# --- Zero


def test_idle_pools_are_not_needed_and_their_least_stays() -> None:
    assert desired(pool(2), pool(3)) == (0, 0)
    assert desired(pool(2), pool(3), replace(SETTINGS, least={"prefill": 1, "decode": 2})) == (1, 2)


def test_each_pool_goes_by_itself() -> None:
    assert desired(pool(), pool(sequences=1.0, decode_tokens_per_s=5.0)) == (0, 1)
    assert desired(pool(prompt_tokens_per_s=5.0), pool()) == (1, 0)


def test_both_come_back_for_what_waits_in_the_router() -> None:
    none = pool(0)
    assert desired(none, none) == (0, 0)
    assert desired(none, none, waiting=1.0, waiting_tokens=5.0) == (1, 1)


def test_prompts_that_run_alone_for_want_of_a_pool_are_its_demand() -> None:
    """The other pool computes and decodes them."""
    alone = pool(sequences=1.0, prompt_tokens_per_s=10.0, decode_tokens_per_s=3.0)
    assert desired(pool(0), alone) == (1, 1)
    assert desired(alone, pool(0)) == (1, 1)
    assert desired(alone, pool()) == (1, 0)  # there is one: what runs alone beside it does so by choice


def test_an_answer_of_one_token_needs_no_decode_worker() -> None:
    assert desired(pool(sequences=1.0, prompts=1.0, queued_tokens=50.0, prompt_tokens_per_s=10.0), pool(0)) == (1, 0)


def test_who_starts_is_waited_for() -> None:
    """Serve asks again before it runs, and would stop it at once."""
    assert desired(pool(0, target=2), pool()) == (2, 0)


def test_nothing_changes_while_no_router_says_anything() -> None:
    figures = ApplicationFigures(pools={P: pool(3), D: pool(2)}, routers=())
    assert AutoscalingPolicy(SETTINGS).desired(figures) == {P: 3, D: 2}


# --- Both


def test_a_fixed_ratio_lets_the_pool_decide_that_needs_more() -> None:
    settings = replace(SETTINGS, decode_per_prefill=2.0)
    assert desired(pool(prompt_tokens_per_s=16_000.0), pool(sequences=1.0), settings) == (2, 4)
    assert desired(pool(), pool(sequences=150.0), settings) == (2, 4)  # 4 for 40 each
    assert desired(pool(), pool(), settings) == (0, 0)
    half = replace(SETTINGS, decode_per_prefill=0.5)
    assert desired(pool(prompt_tokens_per_s=20_000.0), pool(), half) == (3, 2)
    limited = replace(settings, most={"prefill": 2, "decode": 9})
    assert desired(pool(prompt_tokens_per_s=64_000.0), pool(), limited) == (2, 4)


def test_a_pool_without_steps_is_predicted_by_the_others() -> None:
    settings, queued = replace(SETTINGS, queue_s=0.1), pool(prompts=100.0, queued_tokens=4_000.0)
    assert desired(queued, pool(), settings, prefill_token_s=0.0)[0] == 8  # 0.2 ms a token
    assert desired(queued, pool(), settings, prefill_token_s=0.0, decode_token_s=0.0)[0] == 1  # nobody knows


def test_routers_queues_add_up_and_what_they_have_seen_is_averaged() -> None:
    routers = [replace(COSTS, waiting=1.0, waiting_tokens=6_000.0, prefill_token_s=each) for each in (5e-5, 1.5e-4)]
    routers.append(RouterFigures())  # has seen no step yet
    figures = ApplicationFigures(pools={P: pool(), D: pool()}, routers=routers)
    assert figures.costs(P).token_s == pytest.approx(1e-4)
    assert AutoscalingPolicy(SETTINGS).desired(figures)[P] == 2


def test_the_settings_come_from_the_config() -> None:
    config = load_config(
        overrides={
            "prefill.autoscaling.max": 4,
            "prefill.autoscaling.queue_share": 0.25,
            "decode.replicas": 3,
            "router.ttft_target_ms": 800,
            "engine.itl_target_ms": 40,
            "decode.engine.itl_target_ms": 20,
        },
        environ={},
    )
    settings = PolicySettings.of(config)
    assert (settings.least, settings.most) == ({"prefill": 1, "decode": 3}, {"prefill": 4, "decode": 3})
    assert (settings.queue_s, settings.itl_s) == (pytest.approx(0.2), pytest.approx(0.018))
    assert PolicySettings(**settings.to_json()) == settings
