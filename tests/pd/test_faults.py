"""Workers that die or stop in the middle of handovers: counters return to zero and every token is the undisturbed run's."""

import os
import random
import signal
from typing import Any

import pytest
from pd_cluster import Answer, Cluster, spec

STOP_S = 3.5  # past lease and quarantine
SETTINGS = {
    "times": {"lease": 2.0, "lease_margin": 0.3, "quarantine": 0.5},
    "max_model_len": 1600,
    "num_kv_blocks": 1200,
    "max_num_batched_tokens": 32,  # many steps a prompt: a fault finds it under way
    "enable_prefix_caching": True,
}


def long_requests(count: int = 8) -> list[dict[str, Any]]:
    draw = random.Random(5)
    return [
        spec(
            number,
            [draw.randrange(1, 512) for _ in range(1000)],
            max_tokens=30,
            ignore_eos=True,
            temperature=0.8,
            seed=number,
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def undisturbed() -> dict[int, list[Any]]:
    with Cluster("tcp", ["alone"], **SETTINGS) as cluster:
        answers = {r["key"]["request"]: cluster.submit("alone", None, r) for r in long_requests()}
        cluster.run_until(lambda: all(a.finished for a in answers.values()), 60)
        return {number: answer.tokens() for number, answer in answers.items()}


def submit_all(cluster: Cluster) -> dict[int, Answer]:
    return {r["key"]["request"]: cluster.submit("prefill", "decode", r) for r in long_requests()}


def some_kv_is_there(cluster: Cluster) -> None:
    """Runs until the second handover is on its way; the others follow."""
    cluster.run_until(lambda: sum(bool(a.rows) for a in cluster.answers.values()) >= 2, 30)
    assert sum(bool(a.rows) for a in cluster.answers.values()) < len(cluster.answers)


def test_what_is_relayed_to_a_worker_that_was_just_killed_is_lost_and_nobody_is_disturbed() -> None:
    with Cluster("tcp", ["prefill", "decode"], **SETTINGS) as cluster:
        prefill = cluster.workers["prefill"]
        prefill.kill()
        assert not prefill.pipe.closed  # nobody has read it since
        cluster.relay(prefill.key, "from_peer", cluster.workers["decode"].key, {})
        assert not cluster.ask("decode", "check_idle", "idle")


@pytest.mark.parametrize("mode", ["shm", "tcp"])
def test_a_killed_prefill_worker_leaves_nothing_in_the_decode_worker(mode: str, undisturbed: dict[int, Any]) -> None:
    with Cluster(mode, ["prefill", "decode"], **SETTINGS) as cluster:
        answers = submit_all(cluster)
        some_kv_is_there(cluster)
        prefill = cluster.workers["prefill"]
        prefill.kill()
        cluster.run_until(lambda: prefill.pipe.closed, 10)
        cluster.workers.pop("prefill")
        cluster.workers["decode"].say("lost", "sender", prefill.key)
        cluster.run_until(lambda: False, 1.5, must=False)  # what is committed streams on, the rest is void
        cluster.retry_alone("decode", long_requests())
        assert {number: answer.tokens() for number, answer in answers.items()} == undisturbed
        cluster.wait_idle()
        assert cluster.ask("decode", "figures")["counts"]["endpoints"] == 0


@pytest.mark.parametrize("mode", ["shm", "tcp"])
def test_a_killed_decode_worker_leaves_nothing_in_the_prefill_worker(mode: str, undisturbed: dict[int, Any]) -> None:
    with Cluster(mode, ["prefill", "decode"], **SETTINGS) as cluster:
        answers = submit_all(cluster)
        some_kv_is_there(cluster)
        decode = cluster.workers["decode"]
        decode.kill()
        cluster.run_until(lambda: decode.pipe.closed, 10)
        cluster.workers.pop("decode")
        cluster.workers["prefill"].say("lost", "receiver", decode.key)
        cluster.wait_idle()
        cluster.retry_alone("prefill", long_requests())
        assert {number: answer.tokens() for number, answer in answers.items()} == undisturbed
        cluster.wait_idle()


@pytest.mark.parametrize(
    ("mode", "who"), [("shm", "prefill"), ("tcp", "prefill"), ("shm", "decode"), ("tcp", "decode")]
)
def test_a_worker_that_was_stopped_past_the_lease_loses_no_token(
    mode: str, who: str, undisturbed: dict[int, Any]
) -> None:
    with Cluster(mode, ["prefill", "decode"], **SETTINGS) as cluster:
        answers = submit_all(cluster)
        some_kv_is_there(cluster)
        process = cluster.workers[who].process
        os.kill(process.pid, signal.SIGSTOP)
        cluster.run_until(lambda: False, STOP_S, must=False)
        if who == "prefill":  # its grants are void and sealed before it wakes up
            counts = cluster.ask("decode", "figures")["counts"]
            assert counts["receiver"]["live_grants"] == counts["receiver"]["quarantined_grants"] == 0
            assert counts["receives_outstanding"] == 0
        os.kill(process.pid, signal.SIGCONT)

        cluster.run_until(cluster.settled, 30)
        cluster.retry_alone("prefill", long_requests())
        assert {number: answer.tokens() for number, answer in answers.items()} == undisturbed
        cluster.wait_idle()


@pytest.mark.parametrize("mode", ["shm", "tcp"])
def test_requests_that_leave_in_the_middle_leave_nothing(mode: str) -> None:
    draw = random.Random(9)
    with Cluster(mode, ["prefill", "decode"], **SETTINGS) as cluster:
        gone: set[int] = set()
        running: list[int] = []
        number = 0

        def step() -> bool:
            nonlocal number
            running[:] = [n for n in running if not (cluster.answers[n].finished or n in gone)]
            for n in running:
                if n % 3 == 0 and draw.random() < 0.2:
                    cluster.cancel(n)
                    gone.add(n)
            while number < 150 and len(running) < 8:
                prompt = [draw.randrange(1, 512) for _ in range(draw.randrange(1, 700))]
                sampling = {"max_tokens": draw.randrange(2, 20), "ignore_eos": True, "temperature": 0.0}
                cluster.submit("prefill", "decode", spec(number, prompt, **sampling))
                running.append(number)
                number += 1
            return not running

        cluster.run_until(step, 90)
        assert len(gone) > 15
        cluster.wait_idle()
        for name in ("prefill", "decode"):
            figures = cluster.ask(name, "figures")
            blocks = figures["load"]["blocks"]
            assert blocks["free"] + blocks["cached"] == blocks["total"]
            assert figures["counts"]["sends_outstanding"] == figures["counts"]["receives_outstanding"] == 0
