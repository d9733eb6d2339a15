"""Prefill in one process, decode in another, KV over UCX: bit for bit what one engine does alone."""

import random
from typing import Any

import pytest
from pd_cluster import Cluster, spec

# Bytes of a token in pd_worker.MODEL's layout: layers, K and V, heads, head_dim, bf16.
TOKEN_BYTES = 8 * 2 * 2 * 32 * 2


def requests(count: int, seed: int) -> list[dict[str, Any]]:
    """Prompts of 1 to 300 tokens, a third of them behind a common system prompt; greedy and seeded by turns."""
    draw = random.Random(seed)
    system = [draw.randrange(1, 512) for _ in range(70)]
    made = []
    for number in range(count):
        length = draw.choice([1, 15, 16, 17, 31, 64, 129, draw.randrange(2, 300)])
        prompt = [draw.randrange(1, 512) for _ in range(length)]
        sampling: dict[str, Any] = {"max_tokens": draw.randrange(4, 24), "ignore_eos": True, "temperature": 0.0}
        if number % 2:
            sampling |= {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "seed": draw.getrandbits(63)}
        made.append(spec(number, system + prompt if number % 3 == 0 else prompt, **sampling))
    return made


def run(cluster: Cluster, sender: str, receiver: str | None, todo: list[dict[str, Any]], concurrency: int) -> None:
    waiting = list(reversed(todo))
    running: list[Any] = []

    def step() -> bool:
        running[:] = [answer for answer in running if not answer.finished]
        while waiting and len(running) < concurrency:
            running.append(cluster.submit(sender, receiver, waiting.pop()))
        return not running

    cluster.run_until(step, 90)


@pytest.fixture(scope="module")
def undivided() -> dict[int, list[Any]]:
    with Cluster("tcp", ["alone"]) as cluster:
        run(cluster, "alone", None, requests(50, 1), 1)
        return {number: answer.tokens() for number, answer in cluster.answers.items()}


@pytest.mark.parametrize("mode", ["shm", "tcp"])
def test_fifty_prompts_at_concurrency_8_equal_the_undivided_engine(mode: str, undivided: dict[int, list[Any]]) -> None:
    todo = requests(50, 1)
    with Cluster(mode, ["prefill", "decode"]) as cluster:
        run(cluster, "prefill", "decode", todo, 8)
        cluster.wait_idle()
        assert {number: answer.tokens() for number, answer in cluster.answers.items()} == undivided
        assert all(set(answer.notices) == {"Committed"} for answer in cluster.answers.values())
        assert not cluster.warnings

        sender, receiver = (cluster.ask(name, "figures") for name in ("prefill", "decode"))
        granted = [row for row in cluster.ask("decode", "trace") if row[2] == "granted"]
        prefix_tokens = {row[1]["request"]: row[5] for row in granted}
        payload = sum(len(r["prompt"]) - prefix_tokens[r["key"]["request"]] for r in todo) * TOKEN_BYTES
        assert sender["counts"]["payload_bytes_sent"] == payload
        assert receiver["counts"]["payload_bytes_received"] == payload
        lane = {"shm": "posix", "tcp": "tcp"}[mode]
        assert receiver["counts"]["lanes"][lane]["bytes_received"] == payload
        assert receiver["load"]["prompt_tokens_computed"] == 0
        assert sender["load"]["decode_tokens_computed"] == 0
        assert receiver["counts"]["committed_received"] == sender["counts"]["committed_sent"] == 50


def test_on_devices_that_run_behind_the_host_a_handover_changes_no_token(
    undivided: dict[int, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RTP_LLM_QUEUED_DEVICE", "7")
    with Cluster("shm", ["prefill", "decode"]) as cluster:
        run(cluster, "prefill", "decode", requests(50, 1)[:20], 8)
        cluster.wait_idle()
        assert {number: answer.tokens() for number, answer in cluster.answers.items()} == {
            n: undivided[n] for n in range(20)
        }
        assert cluster.ask("decode", "figures")["load"]["prompt_tokens_computed"] == 0


def test_a_request_that_must_end_with_its_first_token_runs_alone() -> None:
    with Cluster("shm", ["prefill", "decode"]) as cluster:
        answer = cluster.submit("prefill", "decode", spec(1, list(range(1, 40)), max_tokens=1, temperature=0.0))
        cluster.run_until(lambda: answer.finished, 10)
        assert cluster.ask("decode", "figures")["counts"]["payload_bytes_received"] == 0
        cluster.wait_idle()


def test_a_prompt_that_the_receiver_has_whole_moves_no_byte() -> None:
    prompt = [7 * i % 511 + 1 for i in range(64)]  # four blocks
    with Cluster("shm", ["prefill", "decode"]) as cluster:
        sent = []
        for number in range(2):
            request = spec(number, prompt, max_tokens=20, temperature=0.0, ignore_eos=True)
            answer = cluster.submit("prefill", "decode", request)
            cluster.run_until(lambda answer=answer: answer.finished, 10)
            sent.append(cluster.ask("prefill", "figures")["counts"]["payload_bytes_sent"])
        assert sent == [64 * TOKEN_BYTES] * 2
        assert cluster.answers[0].tokens() == cluster.answers[1].tokens()
        cluster.wait_idle()


def test_two_workers_send_to_each_other_at_the_same_time(undivided: dict[int, list[Any]]) -> None:
    todo = requests(50, 1)[:24]
    with Cluster("shm", ["one", "two"]) as cluster:
        for number, request in enumerate(todo):
            cluster.submit(*(("one", "two") if number % 2 else ("two", "one")), request)
        cluster.run_until(lambda: all(answer.finished for answer in cluster.answers.values()), 60)
        assert {number: a.tokens() for number, a in cluster.answers.items()} == {n: undivided[n] for n in range(24)}
        cluster.wait_idle()
        for name in ("one", "two"):
            counts = cluster.ask(name, "figures")["counts"]
            assert counts["committed_sent"] == counts["committed_received"] == 12


def test_scarce_blocks_delay_grants_or_end_them_but_change_no_token(undivided: dict[int, list[Any]]) -> None:
    todo = requests(50, 1)[:16]
    with Cluster("shm", ["prefill", "decode"], num_kv_blocks=60) as cluster:
        for request in todo:
            cluster.submit("prefill", "decode", request)
        cluster.run_until(cluster.settled, 60)
        cluster.retry_alone("prefill", todo)
        assert {number: a.tokens() for number, a in cluster.answers.items()} == {n: undivided[n] for n in range(16)}
        assert cluster.ask("decode", "figures")["counts"]["committed_received"] > 0
        cluster.wait_idle()
