"""Tests that measure time have the machine for themselves."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.turns import Turns

NewTurns = Callable[[], Turns]


@pytest.fixture
def new_turns(tmp_path: Path) -> NewTurns:
    """As of one more process."""
    entrance, room = tmp_path / "entrance", tmp_path / "room"
    entrance.touch()
    room.touch()
    return lambda: Turns(entrance=entrance, room=room)


def is_open(path: Path) -> bool:
    """Whether another test could come in."""
    file = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True


def test_others_run_at_the_same_time(new_turns: NewTurns, tmp_path: Path) -> None:
    for turns in (new_turns(), new_turns()):
        turns.begin(alone=False)
    assert is_open(tmp_path / "entrance") and is_open(tmp_path / "room")


def test_nobody_comes_in_until_the_last_that_runs_alone_has_ended(new_turns: NewTurns, tmp_path: Path) -> None:
    turns = new_turns()
    for _ in range(2):
        turns.begin(alone=True)
        assert not is_open(tmp_path / "room")
        turns.end(next_alone=True)
        assert not is_open(tmp_path / "room")
    turns.begin(alone=True)
    turns.end(next_alone=False)
    assert is_open(tmp_path / "room")


def test_who_waits_to_be_alone_waits_for_running_ones_only(new_turns: NewTurns, tmp_path: Path) -> None:
    running, waiting = new_turns(), new_turns()
    running.begin(alone=False)
    alone = threading.Thread(target=lambda: waiting.begin(alone=True))
    alone.start()
    while is_open(tmp_path / "entrance"):
        pass
    assert alone.is_alive()
    running.end(next_alone=False)
    alone.join()
    assert not is_open(tmp_path / "room") and is_open(tmp_path / "entrance")
