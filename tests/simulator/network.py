"""Sessions: ordered both ways, with heartbeats; they break, and what is under way then is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from tests.simulator.world import Process, World

HEARTBEAT_S = 0.5
LOST_AFTER_S = 2.5


class End(Protocol):
    """One side of a session."""

    process: Process

    def on_message(self, session: Session, message: Any) -> None: ...

    def on_break(self, session: Session) -> None:
        """The session broke and may come back."""

    def on_silence(self, session: Session) -> None:
        """Nothing was heard for LOST_AFTER_S: the other side is lost."""


class Faults:
    """How bad the network is."""

    def __init__(self) -> None:
        self.late = 0.0  # chance that a message is held up
        self.doubled = 0.0  # chance that a message comes twice, the second time late
        self._cuts: dict[frozenset[Process], float] = {}

    def cut(self, a: Process, b: Process, until: float) -> None:
        """Nothing passes between the two for a while; then what was sent does, if the session stands."""
        self._cuts[frozenset((a, b))] = until

    def cut_until(self, a: Process, b: Process) -> float:
        return self._cuts.get(frozenset((a, b)), 0.0)


class Session:
    """`ends` = (caller, server). `heard[i]`: when end i last heard the other."""

    def __init__(self, world: World, faults: Faults, caller: End, server: End) -> None:
        self.world = world
        self.faults = faults
        self.ends = (caller, server)
        self.heard = [world.now, world.now]
        self.broken = False
        self._last_arrival = [world.now, world.now]
        self._noticed = [False, False]
        for side in (0, 1):
            self._beat(side)

    def send(self, sender: End, message: Any) -> None:
        """A message into a broken session is lost."""
        side = self.ends.index(sender)
        if self.broken:
            return
        world = self.world
        delay = world.between(0.0005, 0.01)
        if self.faults.late and world.chance(self.faults.late):
            delay += world.between(0.05, 1.5)
        cut_until = self.faults.cut_until(self.ends[0].process, self.ends[1].process)
        arrival = max(world.now + delay, self._last_arrival[side], cut_until)
        self._last_arrival[side] = arrival
        self._deliver(arrival, 1 - side, message)
        if message is not None and self.faults.doubled and world.chance(self.faults.doubled):
            self._deliver(arrival + world.between(0.0, 0.5), 1 - side, message)

    def _deliver(self, arrival: float, side: int, message: Any) -> None:
        end = self.ends[side]

        def deliver() -> None:
            if self._noticed[side] or self.broken:
                return
            self.heard[side] = self.world.now
            if message is not None:
                end.on_message(self, message)

        self.world.at(arrival, end.process, deliver)

    def _beat(self, side: int) -> None:
        """Heartbeat and watch of one end."""
        end = self.ends[side]

        def beat() -> None:
            if self._noticed[side]:
                return
            if self.world.now - self.heard[side] >= LOST_AFTER_S:
                self.break_()
                self._noticed[side] = True
                end.on_silence(self)
                return
            self.send(end, None)
            self._beat(side)

        self.world.after(HEARTBEAT_S, end.process, beat)

    def break_(self) -> None:
        """Each side notices by itself, a little later; what is under way is lost."""
        if self.broken:
            return
        self.broken = True
        for side in (0, 1):
            self.world.after(self.world.between(0.0, 0.1), self.ends[side].process, self._notice(side))

    def _notice(self, side: int) -> Callable[[], None]:
        def notice() -> None:
            if not self._noticed[side]:
                self._noticed[side] = True
                self.ends[side].on_break(self)

        return notice
