"""The policy `cost` over written-out fleets."""

import random
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest

from rtp_llm.router.placement import (
    DECODE,
    PREFILL,
    CacheChanged,
    CacheReset,
    HandoverMeasured,
    Placement,
    PlacementQuery,
    StepMeasured,
    ViewChanged,
    WorkerGone,
    WorkerView,
)
from rtp_llm.router.placement.cost import Cost
from rtp_llm.router.placement.link import BELIEVED_S
from rtp_llm.router.placement.step_cost import LinearFit, Step, StepCost, pairs

# About Qwen3-8B on an H200: a decode step of 4 ms, 23 us a prompt token.
KNOWN = StepCost(base_s=3.83e-3, sequence_s=18e-6, context_s=32.5e-9, row_s=23.4e-6, pair_s=1.04e-9)
ITL_S = 8e-3
TTFT_S = 0.15


def worker(name: str, pool: str, **fields: object) -> WorkerView:
    return WorkerView(
        id=name,
        epoch=1,
        pool=pool,
        **{"max_queued_tokens": 1 << 20, "free_blocks": 10_000, "block_tokens": 64, "free_slots": 256, **fields},  # type: ignore[arg-type]
    )


def cost(views: list[WorkerView], **settings: object) -> Cost:
    policy = Cost(ttft_target_s=TTFT_S, itl_target_s=ITL_S, known=KNOWN, **settings)  # type: ignore[arg-type]
    policy.observe([ViewChanged(view) for view in views])
    return policy


def choose(policy: Cost, views: list[WorkerView], **fields: object) -> Placement | None:
    query = PlacementQuery(**{"prompt_tokens": 2048, "total_tokens": 2304, **fields})  # type: ignore[arg-type]
    return policy.choose({view.id: view for view in views}, query)


def names(placement: Placement | None) -> tuple[str, str | None] | None:
    return placement and (placement.sender.id, placement.receiver.id if placement.receiver else None)  # type: ignore[return-value]


def predicted(policy: Cost, query: PlacementQuery) -> float:
    found = policy.predicted({}, query)
    assert found is not None
    return found.ttft_s


def hashes_of(tokens: int) -> Callable[[int], bytes]:
    """Of one prompt's first tokens."""
    return lambda size: b"".join(end.to_bytes(16, "little") for end in range(size, tokens + 1, size))


def cached(name: str, tokens: int) -> CacheReset:
    """The worker holds the prompt's first tokens."""
    return CacheReset(name, hashes_of(tokens)(64))


def test_a_prompt_goes_to_the_worker_that_is_soonest_done_with_what_it_has() -> None:
    views = [worker("p0", PREFILL, queued_tokens=8000), worker("p1", PREFILL, queued_tokens=2000)]
    assert names(choose(cost(views), views)) == ("p1", None)


def test_a_query_that_is_asked_again_is_answered_by_what_has_happened_since() -> None:
    policy = cost([worker("holds", PREFILL)])
    query = PlacementQuery(prompt_tokens=2048, block_hashes=hashes_of(2048))
    before = predicted(policy, replace(query, tokens_ahead=1)), policy.lateness(query)
    policy.observe([cached("holds", 1024)])
    assert policy.lateness(query) < before[1]
    assert predicted(policy, replace(query, tokens_ahead=1)) < before[0]


def test_what_is_cached_of_a_prompt_is_not_computed() -> None:
    views = [worker("idle", PREFILL), worker("holds", PREFILL, queued_tokens=1000)]
    policy = cost(views)
    asked = {"block_hashes": hashes_of(2048)}
    query = PlacementQuery(prompt_tokens=2048, **asked)  # type: ignore[arg-type]
    assert names(choose(policy, views, **asked)) == ("idle", None)
    policy = cost(views)
    policy.observe([cached("holds", 1024)])
    left_s = KNOWN.prompt_s(2048, 1024)
    assert policy.predicted({}, query) == (pytest.approx(1000 * KNOWN.row_s + left_s), left_s)
    assert names(choose(policy, views, **asked)) == ("holds", None)
    policy = cost(views)
    policy.observe([cached("holds", 1024), CacheChanged("holds", b"\3" + bytes(16))])
    assert names(choose(policy, views, **asked)) == ("idle", None)


def test_of_receivers_that_decode_alike_the_one_that_lacks_less_is_chosen() -> None:
    decoding = {"sequences": 10, "context_tokens": 10_000}
    views = [worker("p", PREFILL, sequences=200, context_tokens=400_000)]
    views += [worker(name, DECODE, **decoding, max_queued_tokens=0) for name in ("d0", "d1", "d2")]
    policy = cost(views)
    policy.observe([cached("d1", 2048)])
    asked = {"block_hashes": hashes_of(2048)}
    assert names(choose(policy, views, **asked)) == ("p", "d1")
    policy.observe([WorkerGone("d1"), cached("d2", 1024)])
    assert names(choose(policy, views, **asked)) == ("p", "d2")


def test_in_a_large_fleet_a_receiver_that_has_the_prompt_is_looked_at_though_many_decode_less() -> None:
    views = [worker("p", PREFILL, sequences=200, context_tokens=400_000)]
    views += [worker(f"d{n:02}", DECODE, sequences=10, context_tokens=10_000, max_queued_tokens=0) for n in range(40)]
    views += [worker("d", DECODE, sequences=10, context_tokens=10_100, max_queued_tokens=0)]
    policy = cost(views)
    policy.observe([cached("d", 2048)])
    assert names(choose(policy, views, block_hashes=hashes_of(2048))) == ("p", "d")


def test_a_second_turn_runs_alone_where_the_first_one_was_decoded() -> None:
    views = [worker("p", PREFILL), worker("d0", DECODE, sequences=2, context_tokens=3000), worker("d1", DECODE)]
    policy = cost(views)
    policy.observe([cached("d0", 2000), cached("p", 500)])
    assert names(choose(policy, views, block_hashes=hashes_of(2048))) == ("d0", None)


def handovers(sender: str, receiver: str, seconds: float, count: int = 10, at: float = 0.0) -> list[HandoverMeasured]:
    return [HandoverMeasured(sender, receiver, 2048, seconds, at)] * count


def pairs_of(*receivers: str) -> list[WorkerView]:
    """Prompts are handed over: to equal receivers."""
    decoding = {"sequences": 10, "context_tokens": 10_000, "max_queued_tokens": 0}
    return [
        worker("p", PREFILL, sequences=200, context_tokens=400_000),
        *(worker(name, DECODE, **decoding) for name in receivers),
    ]


def test_a_pair_with_a_slow_link_is_avoided_and_tried_again_in_time() -> None:
    views = pairs_of("d0", "d1")
    policy = cost(views)
    assert names(choose(policy, views)) == ("p", "d0")
    policy.observe(handovers("p", "d0", 0.1))
    assert names(choose(policy, views, now=BELIEVED_S - 1)) == ("p", "d1")
    policy.observe(handovers("p", "d1", 0.001, at=BELIEVED_S - 1))
    assert names(choose(policy, views, now=BELIEVED_S - 0.5)) == ("p", "d1")
    policy.observe(handovers("p", "d1", 0.2, at=BELIEVED_S))  # now this one is the slower one
    assert names(choose(policy, views, now=BELIEVED_S + 1)) == ("p", "d0")


def test_a_slow_link_that_has_become_fast_is_used_again() -> None:
    views = pairs_of("d0", "d1")
    policy = cost(views)
    policy.observe([*handovers("p", "d1", 0.004), *handovers("p", "d0", 0.1)])
    assert names(choose(policy, views)) == ("p", "d1")
    policy.observe(handovers("p", "d0", 0.001, at=1.0, count=30))
    assert names(choose(policy, views, now=1.0)) == ("p", "d0")


def test_one_slow_link_of_a_receiver_leaves_it_to_its_other_senders() -> None:
    views = [*pairs_of("d0", "d1"), worker("q", PREFILL, sequences=200, context_tokens=400_000, queued_tokens=100)]
    policy = cost(views)
    fast = [each for s, r in (("p", "d1"), ("q", "d0"), ("q", "d1")) for each in handovers(s, r, 0.001)]
    policy.observe([*handovers("p", "d0", 0.1), *fast])
    assert names(choose(policy, views)) == ("p", "d1")
    full = replace(views[2], free_slots=0)
    policy.observe([ViewChanged(full)])
    assert names(choose(policy, [views[0], views[1], full, views[3]], now=0.5)) == ("q", "d0")


def test_a_worker_whose_handovers_are_all_slow_is_avoided_by_those_that_have_not_tried_it() -> None:
    views = [*pairs_of("d0", "d1"), *(worker(f"q{n}", PREFILL, max_queued_tokens=0) for n in range(3))]
    policy = cost(views)
    policy.observe([each for n in range(3) for each in handovers(f"q{n}", "d0", 0.1)])
    policy.observe([each for n in range(3) for each in handovers(f"q{n}", "d1", 0.001)])
    assert names(choose(policy, views)) == ("p", "d1")


def test_where_handovers_take_long_prompts_run_alone() -> None:
    decoding = {"sequences": 10, "context_tokens": 10_000}
    views = [worker("p", PREFILL, **decoding), worker("d", DECODE, **decoding, queued_tokens=20_000)]
    mixed = Step(10, 10_000, 64, 4000)

    def chosen(handover_s: float) -> tuple[str, str | None] | None:
        policy = cost(views)
        policy.observe([StepMeasured("p", mixed, KNOWN.seconds(mixed)) for _ in range(200)])
        policy.observe(handovers("p", "d", handover_s))
        return names(choose(policy, views))

    assert chosen(0.001) == ("p", "d")
    assert chosen(0.5) == ("p", None)


def test_a_placement_says_how_much_its_receiver_lacks_as_it_was_known_then() -> None:
    views = pairs_of("d0")
    policy = cost(views)
    policy.observe([cached("d0", 1024)])
    placement = choose(policy, views, block_hashes=hashes_of(2048))
    assert placement is not None and placement.tokens_sent == 1024


def test_what_was_placed_counts_until_a_load_shows_it() -> None:
    views = [worker("p0", PREFILL), worker("p1", PREFILL)]
    policy = cost(views)
    assert {names(choose(policy, views)) for _ in range(2)} == {("p0", None), ("p1", None)}


def test_a_backlog_is_worked_off_as_time_goes_by() -> None:
    views = [worker("p0", PREFILL, queued_tokens=8000), worker("p1", PREFILL, sequences=20, context_tokens=20000)]
    assert names(choose(cost(views), views, now=0.0)) == ("p1", None)
    assert names(choose(cost(views), views, now=1.0)) == ("p0", None)


def test_a_handover_is_planned_where_prompts_would_slow_the_answer_down() -> None:
    decoding = {"sequences": 10, "context_tokens": 10_000}
    views = [worker("p", PREFILL, **decoding), worker("d", DECODE, **decoding, queued_tokens=20_000)]
    policy = cost(views)
    assert names(choose(policy, views)) == ("p", None)
    mixed = Step(10, 10_000, 64, 4000)
    for _ in range(200):  # the prefill worker computes prompts in each of its steps
        policy.observe([StepMeasured("p", mixed, KNOWN.seconds(mixed))])
    assert names(choose(policy, views)) == ("p", "d")


def test_a_decode_worker_inside_its_budget_runs_a_prompt_alone_when_prefill_workers_are_busy() -> None:
    views = [worker("p", PREFILL, queued_tokens=16000), worker("d", DECODE, sequences=2, context_tokens=3000)]
    assert names(choose(cost(views), views)) == ("d", None)


def test_a_pool_alone_serves_by_itself_and_what_must_run_alone_does() -> None:
    for pool in (PREFILL, DECODE):
        views = [worker("only", pool)]
        assert names(choose(cost(views), views)) == ("only", None)
    views = [worker("p", PREFILL), worker("d", DECODE)]
    placement = choose(cost(views), views, must_run_alone=True)
    assert placement is not None and placement.receiver is None


def test_nobody_gets_what_it_can_not_hold_and_kv_goes_between_equal_layouts_only() -> None:
    views = [worker("p", PREFILL, max_model_len=2304), worker("d", DECODE, max_model_len=4096, queued_tokens=1 << 20)]
    assert names(choose(cost(views), views, total_tokens=2305)) == ("p", "d")
    assert choose(cost(views), views, total_tokens=4097) is None
    views[1] = replace(views[1], layout="another")
    assert choose(cost(views), views, total_tokens=2305) is None


def test_a_request_waits_where_all_decode_too_slowly_until_its_first_token_is_due() -> None:
    full = worker("p", PREFILL, sequences=250, context_tokens=250 * 2000)
    policy = cost([full])
    asked = {"prompt_tokens": 64, "total_tokens": 320, "ttft_target_s": 1.0}
    assert choose(policy, [full], **asked) is None
    assert names(choose(policy, [full], **asked, waited_s=0.9)) == ("p", None)
    assert names(choose(policy, [full], **asked, itl_target_s=1e-3)) == ("p", None)  # not even by itself


def test_predictions_follow_what_steps_really_took() -> None:
    views = [worker("p0", PREFILL, queued_tokens=1000), worker("p1", PREFILL, queued_tokens=2000)]
    policy = cost(views)
    for _ in range(50):  # p0 has become four times slower
        for rows in (512, 1024, 2048):
            step = Step.of_prompt(rows)
            policy.observe([StepMeasured("p0", step, 4 * KNOWN.seconds(step))])
            policy.observe([StepMeasured("p1", step, KNOWN.seconds(step))])
    views = [replace(view, load_at=1.0) for view in views]
    policy.observe([ViewChanged(view) for view in views])
    query = PlacementQuery(prompt_tokens=2048, now=1.0)
    assert predicted(policy, query) == pytest.approx(2000 * KNOWN.row_s + KNOWN.prompt_s(2048), rel=0.02)
    assert names(choose(policy, views, now=1.0)) == ("p1", None)


def test_the_best_eight_of_each_are_as_good_as_all_pairs_at_32_workers() -> None:
    for seed in range(300):
        draw = random.Random(seed)
        views = [
            worker(
                f"w{i:02}",
                draw.choice((PREFILL, DECODE)),
                queued_tokens=draw.choice((0, 0, draw.randrange(8000))),
                sequences=(sequences := draw.randrange(100)),
                context_tokens=sequences * draw.randrange(200, 3000),
                free_blocks=draw.choice((10, 10_000)),
                load_at=draw.uniform(-0.1, 0.0),
            )
            for i in range(32)
        ]
        prompt = draw.choice((64, 512, 2048, 8192))
        query = PlacementQuery(prompt_tokens=prompt, total_tokens=8400, block_hashes=hashes_of(prompt))
        few, all = cost(views), cost(views, breadth=None)
        if seed % 2:
            held = {view.id: draw.choice((0, 0, draw.randrange(prompt + 1))) for view in views}
            few.observe([cached(id, tokens) for id, tokens in held.items()])
            all.observe([cached(id, tokens) for id, tokens in held.items()])
        if seed % 3:
            senders, receivers = ([view.id for view in views if view.pool == pool] for pool in (PREFILL, DECODE))
            slow = [
                HandoverMeasured(sender, receiver, 1024, draw.choice((0.001, 0.001, 0.001, 0.1)), -0.1)
                for sender in senders
                for receiver in receivers
                if draw.random() < 0.5
            ]
            few.observe(slow)
            all.observe(slow)
        assert few.lateness(query) == all.lateness(query), seed


def test_step_costs_are_learned_from_steps() -> None:
    draw, learned = random.Random(0), StepCost()

    def step() -> Step:
        decodes = draw.randrange(1, 100)
        context = decodes * draw.randrange(500, 1500)
        if draw.random() < 0.5:
            return Step(decode_rows=decodes, context_tokens=context)
        rows = draw.randrange(50, 350)
        return draw.choice((Step(decodes, context, rows, pairs(rows, draw.randrange(2000))), Step.of_prompt(rows * 8)))

    for _ in range(300):
        measured = step()
        learned.observe(measured, KNOWN.seconds(measured) * draw.uniform(0.95, 1.05))
    for _ in range(100):
        asked = step()
        assert learned.seconds(asked) == pytest.approx(KNOWN.seconds(asked), rel=0.06)


@pytest.mark.parametrize("times", [0.1, 1000.0])
def test_step_costs_are_learned_as_soon_on_a_machine_that_is_slower_or_faster(times: float) -> None:
    here, there = StepCost(), StepCost()
    for rows in (1, 2, 1, 3, 2, 4) * 5:
        for step in (Step(decode_rows=rows, context_tokens=1500 * rows), Step.of_prompt(512 * rows)):
            here.observe(step, KNOWN.seconds(step))
            there.observe(step, times * KNOWN.seconds(step))
    for name in ("base_s", "sequence_s", "context_s", "row_s", "pair_s"):
        assert getattr(there, name) == pytest.approx(times * getattr(here, name), rel=1e-6)


def test_a_fit_learns_on_after_a_long_time_of_equal_steps() -> None:
    learned = StepCost()
    for _ in range(20_000):
        learned.observe(Step(decode_rows=8, context_tokens=8000), 0.0038)
    assert learned.decode_s(8, 8000) == pytest.approx(0.0038, rel=1e-3)
    for rows in (1, 16) * 50:
        learned.observe(Step(decode_rows=rows, context_tokens=1000 * rows), 0.003 + 0.0001 * rows)
    for rows in (1, 4, 16):
        assert learned.decode_s(rows, 1000 * rows) == pytest.approx(0.003 + 0.0001 * rows, rel=0.02)


def test_short_prompts_alone_do_not_make_rows_look_dear_for_ever() -> None:
    learned = StepCost()
    learned.observe(Step.of_prompt(64), KNOWN.seconds(Step.of_prompt(64)))  # the weights' reading
    assert learned.row_s > 2 * KNOWN.row_s
    for rows in (64, 128, 64, 128) * 50:
        for step in (Step(decode_rows=8, context_tokens=1000), Step(8, 1000, rows, pairs(64) * rows // 64)):
            learned.observe(step, KNOWN.seconds(step))
    assert 128 * learned.row_s < 1.1 * KNOWN.base_s


# --- Predictions for an admission


def test_a_prediction_counts_workers_that_accept_nothing_now() -> None:
    full = [
        worker(f"p{i}", PREFILL, queued_tokens=queued, max_queued_tokens=1000) for i, queued in ((0, 9000), (1, 5000))
    ]
    query = PlacementQuery(prompt_tokens=2048, total_tokens=2049)
    ttft_s = 5000 * KNOWN.row_s + KNOWN.prompt_s(2048)
    assert choose(cost(full), full) is None
    assert cost(full).predicted({}, query) == pytest.approx((ttft_s, KNOWN.prompt_s(2048)))
    accepting = worker("p2", PREFILL, queued_tokens=900, max_queued_tokens=1000)
    assert predicted(cost([*full, accepting]), query) == pytest.approx(900 * KNOWN.row_s + KNOWN.prompt_s(2048))
    full[1] = replace(full[1], queued_tokens=999)  # it accepts again
    policy = cost(full)
    policy.observe([ViewChanged(full[1])])
    assert predicted(policy, query) == pytest.approx(999 * KNOWN.row_s + KNOWN.prompt_s(2048))


def test_a_prediction_counts_the_prompts_that_wait_in_the_router_and_go_first() -> None:
    views = [worker(f"p{i}", PREFILL, queued_tokens=100) for i in range(4)]
    query = PlacementQuery(prompt_tokens=500, total_tokens=501, tokens_ahead=20_000)
    assert predicted(cost(views), query) == pytest.approx(5100 * KNOWN.row_s + KNOWN.prompt_s(500))


def test_nothing_is_predicted_of_workers_that_can_not_hold_the_prompt() -> None:
    views = [worker("p", PREFILL, max_model_len=2048, queued_tokens=100)]
    assert cost(views).predicted({}, PlacementQuery(prompt_tokens=2048)) is None
    assert cost(views).predicted({}, PlacementQuery(prompt_tokens=2047)) is not None


def test_an_idle_worker_that_was_long_not_seen_at_work_is_given_another_chance() -> None:
    """What was once measured may not refuse requests for ever."""
    idle = worker("p", PREFILL, load_at=100.0)
    policy = cost([idle])
    step = Step.of_prompt(512)
    for _ in range(50):
        policy.observe([StepMeasured("p", step, 8.0)])
    asked = PlacementQuery(prompt_tokens=512, total_tokens=513, now=105.0)
    assert predicted(policy, asked) > 1
    assert policy.predicted({}, replace(asked, now=111.0)) is None
    assert policy.predicted({}, replace(asked, now=111.0, tokens_ahead=1)) is not None
    choose(policy, [idle], now=111.0)  # the other chance is one request's
    assert policy.predicted({}, replace(asked, now=111.0)) is not None


def test_of_a_worker_that_left_nothing_is_kept() -> None:
    views = [worker("p0", PREFILL), worker("p1", PREFILL)]
    policy = cost(views)
    slow = Step.of_prompt(2048)
    for _ in range(50):
        policy.observe([StepMeasured("p1", slow, 9 * KNOWN.seconds(slow))])
    gone = weakref.ref(policy._states["p1"])
    policy.observe([WorkerGone("p1"), StepMeasured("p1", slow, 1.0)])
    assert gone() is None and list(policy._states) == ["p0"]
    assert names(choose(policy, views[:1])) == ("p0", None)
    policy.observe([ViewChanged(views[1])])  # what it was is another's now
    assert policy._states["p1"].cost is policy.fleet_cost


def test_weights_are_solved_for_at_each_of_the_first_samples_and_then_once_in_eight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    solved: list[int] = []
    solve = LinearFit._best_weights

    def counted(fit: LinearFit) -> list[float]:
        solved.append(sample)
        return solve(fit)

    monkeypatch.setattr(LinearFit, "_best_weights", counted)
    learned = StepCost()
    for sample in range(264):
        learned.observe(Step(decode_rows=1 + sample % 7, context_tokens=sample), 0.01)
    assert solved[:7] == list(range(7))
    assert len([each for each in solved if each >= 64]) == 200 / 8
