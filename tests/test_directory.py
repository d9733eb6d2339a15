"""The directory as a plain object, and one round as a Ray actor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from rtp_llm.directory import (
    NAMESPACE,
    Directory,
    DirectoryActor,
    DirectoryClient,
    Member,
    StaticMembership,
    remove_directory,
)
from rtp_llm.pool_state import ApplicationState, PoolState

A = Member(id="a", epoch=1, pool="prefill", address="127.0.0.1:1")
B = Member(id="b", epoch=2, pool="decode", address="127.0.0.1:2")
A2 = Member(id="a", epoch=3, pool="prefill", address="127.0.0.1:3")


async def members(directory: Directory) -> list[Member]:
    return (await directory.members())[1]


async def test_a_member_leaves_when_its_lease_is_over() -> None:
    directory = Directory(lease_s=0.1)
    await directory.register(A)
    version, found = await directory.members()
    assert found == [A]
    _, found = await directory.members(version, timeout_s=2)
    assert found == []


async def test_who_registers_hears_of_the_newest_state_that_a_member_of_its_model_holds() -> None:
    directory = Directory()

    def state(number: int, base: str = "/model") -> ApplicationState:
        return ApplicationState(number=number, base=base, decode=PoolState(weights=f"/{number}", version=number))

    assert await directory.register(replace(A, state=state(2))) == state(2)
    assert await directory.register(replace(B, state=state(1))) == state(2)
    assert await directory.register(replace(B, state=state(3))) == state(3)
    other = replace(B, id="c", state=state(9, "/another"))  # deployed with another model.path
    assert await directory.register(other) == state(9, "/another")
    assert await directory.register(replace(A, state=state(2))) == state(3)
    await directory.withdraw(B)
    assert await directory.register(replace(A, state=state(2))) == state(2)  # nothing is stored


async def test_registering_again_renews_the_lease_and_changes_nothing() -> None:
    directory = Directory(lease_s=1.0)
    await directory.register(A)
    version, _ = await directory.members()
    for _ in range(6):
        await asyncio.sleep(0.2)
        await directory.register(A)
    assert await directory.members() == (version, [A])


async def test_a_watcher_wakes_at_a_change_and_not_before() -> None:
    directory = Directory()
    version, _ = await directory.members()
    waiting = asyncio.ensure_future(directory.members(version, timeout_s=5))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await directory.register(B)
    assert (await waiting)[1] == [B]


async def test_a_watcher_gets_the_same_version_when_nothing_changes() -> None:
    directory = Directory()
    version, _ = await directory.members()
    assert await directory.members(version, timeout_s=0.05) == (version, [])


async def test_versions_of_two_incarnations_differ() -> None:
    assert (await Directory().members())[0] != (await Directory().members())[0]


async def test_a_new_epoch_replaces_the_old_and_its_withdrawal_comes_too_late() -> None:
    directory = Directory()
    await directory.register(A)
    await directory.register(A2)
    await directory.withdraw(A)
    assert await members(directory) == [A2]
    await directory.withdraw(A2)
    await directory.withdraw(A2)
    assert await members(directory) == []


async def test_a_directory_that_nobody_calls_any_more_is_deserted_once() -> None:
    deserted = asyncio.Event()
    directory = Directory(deserted_after_s=0.5, deserted=deserted.set)
    for _ in range(4):
        await asyncio.sleep(0.2)
        await directory.register(A)
        assert not deserted.is_set()
    await asyncio.wait_for(deserted.wait(), 10)


async def test_a_static_membership_yields_now_and_after_each_change() -> None:
    membership = StaticMembership([A])
    watch = membership.watch()
    assert await anext(watch) == [A]
    later = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    membership.set([A, B])
    assert await later == [A, B]


class LocalActor:
    """A Directory that is called as Ray's actor handles are."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=getattr(self._directory, method))


async def test_clients_outlive_what_ray_raises_while_its_head_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = LocalActor(Directory())
    asked = 0

    def find_actor(name: str) -> LocalActor:
        nonlocal asked
        asked += 1
        if asked <= 2:
            raise OSError("the head's connection is closed")
        return actor

    monkeypatch.setattr("rtp_llm.directory._actor", find_actor)
    watch = DirectoryClient("d").watch()
    registering = asyncio.ensure_future(DirectoryClient("d").keep_registered(lambda: A))
    await until(watch, [A])
    registering.cancel()


@pytest.fixture(scope="module")
def local_ray() -> Iterator[Any]:
    import ray

    started = not ray.is_initialized()
    if started:
        ray.init(
            address="local", include_dashboard=False, num_cpus=1, log_to_driver=False, _node_ip_address="127.0.0.1"
        )
    yield ray
    if started:
        ray.shutdown()


async def until(watch: AsyncIterator[Sequence[Member]], wanted: list[Member]) -> None:
    async def scan() -> None:
        async for found in watch:
            if sorted(found, key=lambda m: m.id) == wanted:
                return

    await asyncio.wait_for(scan(), 30)


async def test_the_actor_may_be_killed_and_its_members_are_back_within_seconds(local_ray: Any) -> None:
    name = "directory-under-test"
    worker, router = DirectoryClient(name), DirectoryClient(name)
    registering = [asyncio.ensure_future(worker.keep_registered(lambda each=each: each)) for each in (A, B)]
    try:
        await until(router.watch(), [A, B])
        watch = router.watch()
        await until(watch, [A, B])
        remove_directory(name)
        await until(watch, [A, B])  # the next yield comes from the actor that was made anew
        registering.pop().cancel()
        await worker.withdraw(B)
        await until(watch, [A])
    finally:
        for each in registering:
            each.cancel()
        remove_directory(name)


async def test_the_actor_ends_by_itself_when_it_is_deserted(local_ray: Any) -> None:
    options = {"name": "deserted", "namespace": NAMESPACE, "lifetime": "detached", "max_restarts": -1, "num_cpus": 0}
    actor = local_ray.remote(DirectoryActor).options(**options).remote(0.2)
    version, _ = await actor.members.remote()
    with pytest.raises(local_ray.exceptions.ActorDiedError):
        await actor.members.remote(version, 30.0)
    with pytest.raises(ValueError, match="deserted"):
        local_ray.get_actor("deserted", namespace=NAMESPACE)
