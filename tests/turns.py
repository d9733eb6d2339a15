"""Who runs when, among the tests of several processes."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class Turns:
    """Lets tests run at the same time, but for those that run alone.

    Whoever wants the room waits at the entrance, so a test that waits to be alone has to wait for running ones only. Both
    are files, locked.
    """

    def __init__(self, *, entrance: Path, room: Path) -> None:
        self._entrance, self._room = (os.open(path, os.O_RDONLY) for path in (entrance, room))
        self._alone = False

    def begin(self, *, alone: bool) -> None:
        if self._alone:
            return
        fcntl.flock(self._entrance, fcntl.LOCK_EX)
        fcntl.flock(self._room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(self._entrance, fcntl.LOCK_UN)
        self._alone = alone

    def end(self, *, next_alone: bool) -> None:
        """Tests that run alone follow each other without a pause."""
        if not (self._alone and next_alone):
            fcntl.flock(self._room, fcntl.LOCK_UN)
            self._alone = False
