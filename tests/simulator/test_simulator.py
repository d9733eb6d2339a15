"""Some hundred walks; `python -m tests.simulator` takes many more."""

from __future__ import annotations

from collections import Counter

import pytest

from rtp_llm.router.request_machine import Action, Emit, Finish, Output, RequestMachine
from tests.simulator.walk import walk
from tests.simulator.world import Violation, note

WALKS = 300
SHARE = 50


@pytest.fixture(scope="module")
def counted() -> Counter[str]:
    return Counter()


@pytest.mark.parametrize("first", range(0, WALKS, SHARE))
def test_no_walk_ends_with_a_gap_a_repeat_a_reuse_a_stuck_request_or_a_leak(first: int, counted: Counter[str]) -> None:
    for seed in range(first, first + SHARE):
        try:
            counted.update(walk(seed))
        except Exception as error:
            note(error, f"seed {seed}: python -m tests.simulator --seed {seed} --trace")
            raise


def test_the_walks_meet_what_they_are_made_for(counted: Counter[str]) -> None:
    rare = [
        *("drained", "preemptions", "late writes", "refused messages", "bad messages", "left", "crashes", "stops"),
        *(
            f"did: {what}"
            for what in ("Released", "NoRoom", "Expired", "BadChecksum", "CloseEndpoint", "Abort", "Busy")
        ),
        *(f"placed: {cause}" for cause in ("busy", "fenced", "lost")),
    ]
    assert {what for what in rare if not counted[what]} == set()


def seeds_until_violation(limit: int) -> int | None:
    for seed in range(limit):
        try:
            walk(seed)
        except Violation:
            return seed
    return None


def test_a_router_that_emits_whatever_comes_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(machine: RequestMachine, event: Output) -> list[Action]:
        machine.tokens.append(event.output.token)
        last = machine._done(Finish()) if event.output.finish_reason else []
        return [Emit(event.output), *last]

    monkeypatch.setattr(RequestMachine, "_output", careless)
    assert seeds_until_violation(50) is not None


def test_a_router_that_does_not_repeat_its_attach_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RequestMachine, "attach_entry", lambda machine, worker: None)
    assert seeds_until_violation(200) is not None


def test_a_walk_that_goes_wrong_names_its_seed_on_every_python() -> None:
    error = Violation("a gap")
    note(error, "seed 3")
    note(error, "seed 4")
    assert error.__notes__ == ["seed 3", "seed 4"]  # type: ignore[attr-defined]
