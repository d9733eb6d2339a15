"""Figures: means and rates of what was recorded."""

from rtp_llm.autoscaling.figures import PoolFigures, RouterFigures, Series, WorkerFigures


def worker(**figures: float) -> WorkerFigures:
    return WorkerFigures(max_num_seqs=8.0, max_kv_tokens=100.0, **figures)


def test_what_is_recorded_is_read_back_and_what_is_incomplete_is_nothing() -> None:
    figures = worker(running=2.0, prompt_tokens_computed=7.0)
    assert WorkerFigures.read({**figures.recorded(), "ongoing_requests": 0.0}) == figures
    assert WorkerFigures.read({"running": 1.0}) is None


def test_a_pools_figures_are_sums_of_means_and_of_rates() -> None:
    first = Series(
        [
            (10.0, worker(running=1.0, waiting=2.0, queued_tokens=100.0, prompt_tokens_computed=50.0)),
            (12.0, worker(running=1.0, queued_tokens=50.0, kv_tokens=30.0, prompt_tokens_computed=250.0)),
        ]
    )
    newcomer = Series([(12.0, worker(running=1.0, decode_tokens_computed=1000.0))])
    silent = Series([])
    assert PoolFigures.of([first, newcomer, silent], running=3, target=4) == PoolFigures(
        workers=3,
        target=4,
        queued_tokens=75.0,
        prompts=2.0,  # three, then one; the newcomer computes none
        sequences=3.0,
        slots=16.0,
        kv_tokens=15.0,
        max_kv_tokens=200.0,
        prompt_tokens_per_s=100.0,
        decode_tokens_per_s=0.0,
    )


def test_a_router_is_averaged_but_for_what_steps_take() -> None:
    samples = [RouterFigures(waiting=4.0, waiting_tokens=40.0), RouterFigures(prefill_token_s=0.5)]
    assert RouterFigures.over_time(samples) == RouterFigures(waiting=2.0, waiting_tokens=20.0, prefill_token_s=0.5)
