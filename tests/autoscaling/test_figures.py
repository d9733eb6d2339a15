"""Figures: means and rates of what was recorded."""

from rtp_llm.autoscaling.figures import PoolFigures, Window, WorkerFigures


def worker(**figures: float) -> WorkerFigures:
    return WorkerFigures(max_num_seqs=8.0, max_kv_tokens=100.0, **figures)


def window(*samples: tuple[float, WorkerFigures], seconds: float = 60.0) -> Window:
    found = Window(seconds, *samples[0])
    for at, figures in samples[1:]:
        found.put(at, figures)
    return found


def test_what_is_recorded_is_read_back_and_what_is_incomplete_is_nothing() -> None:
    figures = worker(running=2.0, prompt_tokens_computed=7.0)
    assert WorkerFigures.read({**figures.recorded(), "ongoing_requests": 0.0}) == figures
    assert WorkerFigures.read({"running": 1.0}) is None


def test_a_pools_figures_are_sums_of_means_and_of_rates() -> None:
    first = window(
        (10.0, worker(running=1.0, waiting=2.0, queued_tokens=100.0, prompt_tokens_computed=50.0)),
        (12.0, worker(running=1.0, queued_tokens=50.0, kv_tokens=30.0, prompt_tokens_computed=250.0)),
    )
    newcomer = window((12.0, worker(running=1.0, decode_tokens_computed=1000.0)))
    assert PoolFigures.of([first, newcomer], running=3, target=4) == PoolFigures(
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


def test_a_window_forgets_what_is_older_and_counts_nothing_twice() -> None:
    samples = [(float(at), worker(kv_tokens=float(at), prompt_tokens_computed=float(at * at))) for at in range(10)]
    found = window(*samples, seconds=3.0)
    for _ in range(2):
        found.put(9.0, worker(kv_tokens=1000.0))  # the same moment
        assert found.latest == samples[-1][1]
        assert found.mean("kv_tokens") == (6 + 7 + 8 + 9) / 4
        assert found.rate("prompt_tokens_computed") == (81 - 36) / 3


def test_a_pool_is_full_when_all_its_workers_are_now() -> None:
    full, room = worker(running=7.0, waiting=1.0), worker(running=7.0)
    for last, is_full in ((full, True), (worker(kv_tokens=96.0), True), (room, False)):
        workers = [window((0.0, room), (1.0, last)), window((0.0, room), (1.0, full))]
        assert PoolFigures.of(workers, running=2, target=2).full == is_full
    assert not PoolFigures.of([], running=0, target=0).full
