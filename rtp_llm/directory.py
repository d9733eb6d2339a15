"""Who is there: a small named, detached Ray actor with leases, its clients, and the router's view of it.

Only membership goes through it, never load or cache state. Workers register again every second, so a restart loses nothing
for longer than that; and absence here says only that nobody should begin to talk to a worker: one with a live session stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.exceptions import RayError

from rtp_llm.pool_state import UNASKED, ApplicationState, newest
from rtp_llm.within import within

log = logging.getLogger("rtp_llm.directory")

ROUTER = "router"  # a member that is no worker

NAMESPACE = "rtp_llm"
REGISTER_EVERY_S = 1.0
LEASE_S = 3.0
WATCH_TIMEOUT_S = 30.0
RETRY_S = 0.5
STATE_TRIES = 5
DESERTED_AFTER_S = 2 * WATCH_TIMEOUT_S  # longer than any member or router of a deployment is silent
# What Ray raises while actor, node or head are away; OSError: its own connection failed, ValueError: the name is unknown.
AWAY = (RayError, asyncio.TimeoutError, OSError, ValueError)


@dataclass(frozen=True, kw_only=True)
class Member:
    """One process: a worker of `pool`, or a router (pool ROUTER). `address` is its server, "host:port"."""

    id: str
    epoch: int
    pool: str
    address: str
    state: ApplicationState = UNASKED  # what it holds that administrators have asked for


class Membership(Protocol):
    """What a router knows of the workers that it might talk to."""

    def watch(self) -> AsyncIterator[Sequence[Member]]:
        """All members now, then all of them after each change. Ends only when it is closed."""
        ...


class StaticMembership:
    """A list given by hand, for tests and for deployments without Ray."""

    def __init__(self, members: Sequence[Member] = ()) -> None:
        self._members = list(members)
        self._changed = asyncio.Event()

    def set(self, members: Sequence[Member]) -> None:
        """On the loop of the watchers."""
        self._members = list(members)
        self._changed.set()
        self._changed = asyncio.Event()

    async def watch(self) -> AsyncIterator[Sequence[Member]]:
        while True:
            changed = self._changed
            yield list(self._members)
            await changed.wait()


class Directory:
    """The actor's class: members by id, each until its lease ends. A plain asyncio object without Ray.

    A version names one state of one incarnation: unequal means changed, whatever came between. `deserted()` is called once
    nobody has called for `deserted_after_s`, while nothing is heard or waited for: whoever comes later makes a new one.
    """

    def __init__(
        self,
        lease_s: float = LEASE_S,
        deserted_after_s: float = DESERTED_AFTER_S,
        deserted: Callable[[], None] = lambda: None,
    ) -> None:
        self._lease_s = lease_s
        self._deserted_after_s = deserted_after_s
        self._deserted = deserted
        self._desertion: asyncio.TimerHandle | None = None
        self._members: dict[str, Member] = {}
        self._leases: dict[str, asyncio.TimerHandle] = {}
        self._version = random.getrandbits(48) << 16
        self._changed = asyncio.Event()

    async def register(self, member: Member) -> ApplicationState:
        """Begin or renew the lease of `member`. A new epoch of an id replaces the old one. Returns the newest state that any
        member holds."""
        self._was_called()
        if (lease := self._leases.pop(member.id, None)) is not None:
            lease.cancel()
        loop = asyncio.get_running_loop()
        self._leases[member.id] = loop.call_later(self._lease_s, self._remove, member)
        if self._members.get(member.id) != member:
            self._members[member.id] = member
            self._change()
        return newest(member.state.base, (each.state for each in self._members.values()))

    async def withdraw(self, member: Member) -> None:
        """`member` takes no new work. Idempotent; a later epoch of its id stays."""
        self._was_called()
        self._remove(member)

    async def members(self, known_version: int = 0, timeout_s: float = 0.0) -> tuple[int, list[Member]]:
        """Version and members; waits up to `timeout_s` for a version other than `known_version`."""
        self._was_called()
        if known_version == self._version and timeout_s > 0:
            with contextlib.suppress(asyncio.TimeoutError):
                await within(timeout_s, self._changed.wait())
        return self._version, list(self._members.values())

    def _was_called(self) -> None:
        if self._desertion is not None:
            self._desertion.cancel()
        self._desertion = asyncio.get_running_loop().call_later(self._deserted_after_s, self._deserted)

    def _remove(self, member: Member) -> None:
        if self._members.get(member.id, member).epoch != member.epoch:
            return
        if (lease := self._leases.pop(member.id, None)) is not None:
            lease.cancel()
        if self._members.pop(member.id, None) is not None:
            self._change()

    def _change(self) -> None:
        self._version += 1
        self._changed.set()
        self._changed = asyncio.Event()


class DirectoryClient:
    """Calls the directory actor called `name`, which is made if there is none. One event loop, ray.init() done before."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._actor: Any = None

    async def keep_registered(
        self, member: Callable[[], Member], heard: Callable[[ApplicationState], None] = lambda state: None
    ) -> None:
        """Register `member()` every second until cancelled, and pass on the newest state that is answered; never fails: the
        directory may be away for a while."""
        while True:
            try:
                heard(await within(LEASE_S, self._call("register", member())))
            except AWAY as error:
                self._forget_actor("register", error)
            await asyncio.sleep(REGISTER_EVERY_S)

    async def newest_state(self, base: str) -> ApplicationState:
        """What the members hold, where the configuration says `base`. That of nobody if the directory is away for long: who
        registers hears of it later."""
        for _ in range(STATE_TRIES):
            try:
                _, members = await within(LEASE_S, self._call("members"))
                return newest(base, (member.state for member in members))
            except AWAY as error:
                self._forget_actor("members", error)
                await asyncio.sleep(RETRY_S)
        return newest(base, ())

    async def withdraw(self, member: Member) -> None:
        """One try: without it the lease ends by itself."""
        try:
            await within(LEASE_S, self._call("withdraw", member))
        except AWAY as error:
            self._forget_actor("withdraw", error)

    async def watch(self) -> AsyncIterator[Sequence[Member]]:
        """All members now and after each change (Membership). While the directory is away nothing is yielded."""
        version = 0
        while True:
            try:
                found, members = await within(
                    WATCH_TIMEOUT_S + LEASE_S, self._call("members", version, WATCH_TIMEOUT_S)
                )
            except AWAY as error:
                self._forget_actor("members", error)
                await asyncio.sleep(RETRY_S)
                continue
            if found != version:
                version = found
                yield members

    async def _call(self, method: str, *arguments: Any) -> Any:
        if self._actor is None:
            self._actor = await asyncio.to_thread(_actor, self._name)
        return await getattr(self._actor, method).remote(*arguments)

    def _forget_actor(self, method: str, error: Exception) -> None:
        log.warning(
            "directory %s: %s failed, it is asked again: %s", self._name, method, str(error) or type(error).__name__
        )
        self._actor = None


def remove_directory(name: str) -> None:
    """Kill the actor, if there is one: after the last worker and router are gone. Blocks for a moment."""
    with contextlib.suppress(ValueError):  # no such actor
        ray.kill(ray.get_actor(name, namespace=NAMESPACE))


class DirectoryActor(Directory):
    """Detached, so that it outlives whoever made it; it ends by itself when it is deserted."""

    def __init__(self, deserted_after_s: float = DESERTED_AFTER_S) -> None:
        super().__init__(
            deserted_after_s=deserted_after_s, deserted=lambda: ray.kill(ray.get_runtime_context().current_actor)
        )


def _actor(name: str) -> Any:
    """The running actor of this name, or a new one. Blocks for a moment."""
    return (
        ray.remote(DirectoryActor)
        .options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=10_000,
        )
        .remote()
    )
