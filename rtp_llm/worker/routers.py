"""Routers: a worker's sessions with all routers."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Protocol

from rtp_llm.pool_state import PauseMode
from rtp_llm.wire.endpoint import SessionTiming
from rtp_llm.wire.key import WorkerKey
from rtp_llm.wire.server import Acceptor
from rtp_llm.wire.session import RouterEndpoint, router_acceptor
from rtp_llm.wire.v1.router_pb2 import (
    Draining,
    Load,
    RouterHello,
    RouterMessage,
    WorkerHello,
    WorkerMessage,
)
from rtp_llm.worker.cache_watch import CacheWatch, PrefixCache

log = logging.getLogger("rtp_llm.worker")

LOAD_INTERVAL_S = 0.1  # between two Loads to a router that say the same of what can be placed here


def _says_the_same(load: Load, other: Load) -> bool:
    """A step alone is no reason to send a Load."""
    if load.step == other.step:
        return load == other
    same = Load()
    same.CopyFrom(other)
    same.step.CopyFrom(load.step)
    return load == same


def _takes(load: Load) -> tuple[bool, bool]:
    """Whether a prompt, and whether a handover, can be placed on a worker of this load."""
    return load.queued_tokens < load.max_queued_tokens, load.slots > load.slots_of_others


class RouterListener(Protocol):
    """Called on the loop; must not block."""

    def router_connected(self, router_epoch: int) -> None: ...

    def router_lost(self, router_epoch: int) -> None: ...

    def router_said(self, router_epoch: int, message: RouterMessage) -> None: ...


class Routers:
    """Whom this worker works for. A router whose session is lost is forgotten `expiry_s` later; the machines end its sequences
    by their own clock."""

    def __init__(
        self,
        self_key: WorkerKey,
        hello: Callable[[], WorkerHello],
        listener: RouterListener,
        timing: SessionTiming,
        expiry_s: float,
    ) -> None:
        self._listener = listener
        self._expiry_s = expiry_s
        self._sessions: dict[int, RouterSession] = {}
        self._load = Load()
        self._slots_of_others: Callable[[int], int] = lambda router_epoch: 0
        self._draining = False
        self._pause: PauseMode | None = None  # what the worker drains for; None: it leaves
        self._round = -1  # of draining
        self.acceptor: Acceptor[WorkerMessage, RouterMessage] = router_acceptor(
            self_key.epoch, hello, self._accept, timing
        )

    def send(self, router_epoch: int, message: WorkerMessage) -> bool:
        """False: no such router is connected; its Attach brings what it missed."""
        session = self._sessions.get(router_epoch)
        if session is None:
            return False
        session.wants_load |= message.WhichOneof("message") in ("busy", "failed")
        return session.endpoint.send(message)

    def publish(self, load: Load, slots_of_others: Callable[[int], int], now: float) -> float | None:
        """Send `load` to every router, and to those that connect later, with the slots that others than it (by its epoch) have
        taken: at once where it flips whether something can be placed here, else when LOAD_INTERVAL_S are over since the last
        one. If none of its figures changed: only to routers that heard Busy or Failed since, as they go on counting that
        Submit until a Load comes. `now`: the loop's time.

        Returns the seconds after which to call again for what was put off; None: nothing was.
        """
        self._load, self._slots_of_others = load, slots_of_others
        due: float | None = None
        for session in self._sessions.values():
            own = self._load_for(session)
            if _says_the_same(own, session.load) and not session.wants_load:
                continue
            wait = session.load_sent + LOAD_INTERVAL_S - now
            if wait <= 0 or session.wants_load or _takes(own) != _takes(session.load):
                session.send_load(own, now)
            else:
                due = wait if due is None else min(due, wait)
        return due

    def _load_for(self, session: RouterSession) -> Load:
        load = Load()
        load.CopyFrom(self._load)
        load.slots_of_others = self._slots_of_others(session.endpoint.other_epoch)
        return load

    def publish_cache(self, cache: PrefixCache, now: float) -> float | None:
        """Tell the routers that watch it what is new in the prefix cache, LOAD_INTERVAL_S after the last time at the earliest.

        Returns the seconds after which to call again for what was put off; None: nothing was.
        """
        due: float | None = None
        for session in self._sessions.values():
            if session.watch is None or not session.watch.misses_something(cache):
                continue
            wait = session.cache_told + LOAD_INTERVAL_S - now
            if wait <= 0:
                session.watch.tell(cache, session.endpoint.send)
                session.cache_told = now
            else:
                due = wait if due is None else min(due, wait)
        return due

    def start_draining(self, pause: PauseMode | None = None) -> None:
        """Ask every router, and those that connect later, to place nothing here any more, or until stop_draining()."""
        self._draining, self._pause = True, pause
        self._round += 1
        for session in self._sessions.values():
            session.acknowledged = False
            session.endpoint.send(self._draining_message())

    def stop_draining(self) -> None:
        """Routers may place work here again."""
        self._draining, self._pause = False, None
        for session in self._sessions.values():
            session.endpoint.send(WorkerMessage(draining=Draining(round=self._round, ended=True)))

    def _draining_message(self) -> WorkerMessage:
        return WorkerMessage(draining=Draining(round=self._round, pause=self._pause or ""))

    @property
    def unacknowledged(self) -> list[str]:
        """Routers, expired ones excepted, that have not acknowledged that this worker drains."""
        return [session.router_id for session in self._sessions.values() if not session.acknowledged]

    @property
    def is_draining(self) -> bool:
        return self._draining

    def close(self) -> None:
        for session in self._sessions.values():
            session.cancel_expiry()

    def _accept(self, hello: RouterHello, endpoint: RouterEndpoint) -> RouterSession:
        return RouterSession(hello.router_id, endpoint, self)

    # --- For RouterSession.

    def connected(self, session: RouterSession) -> None:
        self._sessions[session.endpoint.other_epoch] = session
        self._listener.router_connected(session.endpoint.other_epoch)
        if self._draining:  # before all else: nothing is placed here until the router has heard its first Load
            session.endpoint.send(self._draining_message())
        session.send_load(self._load_for(session), asyncio.get_running_loop().time())

    def said(self, session: RouterSession, message: RouterMessage) -> None:
        if message.HasField("draining_acknowledged"):
            if not self._draining or message.draining_acknowledged.round != self._round:
                return  # of a pause that is over
            session.acknowledged = True
        self._listener.router_said(session.endpoint.other_epoch, message)

    def lost(self, session: RouterSession) -> asyncio.TimerHandle:
        """Returns the timer after which the router is forgotten."""
        self._listener.router_lost(session.endpoint.other_epoch)
        return asyncio.get_running_loop().call_later(self._expiry_s, self._forget, session)

    def _forget(self, session: RouterSession) -> None:
        log.info("router %s has expired", session.router_id)
        self.acceptor.forget(session.endpoint)
        if self._sessions.get(session.endpoint.other_epoch) is session:
            del self._sessions[session.endpoint.other_epoch]


class RouterSession:
    """One incarnation of a router: SessionEvents."""

    def __init__(self, router_id: str, endpoint: RouterEndpoint, routers: Routers) -> None:
        self.router_id = router_id
        self.endpoint = endpoint
        self.acknowledged = False
        self.load = Load()  # the last one that was sent
        self.load_sent = 0.0  # when, by the loop's clock
        self.wants_load = False  # though it may be the same again
        self.watch: CacheWatch | None = None  # of the prefix cache, if it wants to know
        self.cache_told = -math.inf  # when it was last told, by the loop's clock
        self._routers = routers
        self._expiry: asyncio.TimerHandle | None = None

    def connected(self, hello: RouterMessage, *, resumed: bool) -> None:
        log.info("router %s %s", self.router_id, "is back" if resumed else "is there")
        self.cancel_expiry()
        self.watch = None  # it asks again
        self._routers.connected(self)

    def message(self, message: RouterMessage) -> None:
        if message.HasField("watch_cache"):
            self.watch, self.cache_told = CacheWatch(message.watch_cache.next), -math.inf
        self._routers.said(self, message)

    def broken(self, reason: str) -> None:
        log.info("session with router %s broke: %s", self.router_id, reason)

    def lost(self, reason: str) -> None:
        log.info("router %s is lost: %s", self.router_id, reason)
        self.cancel_expiry()
        self._expiry = self._routers.lost(self)

    def refused(self, reason: str) -> None:
        raise AssertionError("only the end that connects is refused")

    def send_load(self, load: Load, now: float) -> None:
        self.load, self.load_sent = load, now
        self.wants_load = not self.endpoint.send(WorkerMessage(load=load))

    def cancel_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
