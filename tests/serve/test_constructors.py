"""Replicas whose constructor fails: Serve awaits their __del__ too."""

import asyncio
import gc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest
from ray import serve

from rtp_llm.config import load_config
from rtp_llm.decode.deployment import DecodeWorker
from rtp_llm.directory import Member, StaticMembership
from rtp_llm.errors import ConfigError, ModelLoadError, TaskError
from rtp_llm.lasting_task import LastingTask
from rtp_llm.metrics import readings
from rtp_llm.pool import deployment as pool
from rtp_llm.prefill.deployment import PrefillWorker
from rtp_llm.router import deployment as router

REPLICAS = [(pool, PrefillWorker), (pool, DecodeWorker), (router, router.Router)]


class Worker:
    """Loads, doesn't start."""

    loads = True
    stopped = 0

    @classmethod
    async def load(cls, *_: object, **__: object) -> "Worker":
        if not cls.loads:
            raise ModelLoadError("no such model")
        return cls()

    async def start(self) -> None:
        raise ModelLoadError("doesn't start")

    must_be_killed = False

    async def stop(self) -> None:
        type(self).stopped += 1


async def construct_and_destroy(cls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    destroy = cls.__del__
    [owner] = [each for each in cls.__mro__ if "__del__" in vars(each)]
    monkeypatch.delattr(owner, "__del__")  # Serve's call is the only one
    replica = object.__new__(cls)
    with pytest.raises(ModelLoadError):
        await cls.__init__(replica, {})
    await destroy(replica)


@pytest.mark.parametrize(("module", "cls"), REPLICAS)
async def test_a_constructor_that_fails_at_once_leaves_nothing_to_stop(
    module: Any, cls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise ModelLoadError("no such model")

    monkeypatch.setattr(module, "prepare_replica", fail)
    await construct_and_destroy(cls, monkeypatch)


@pytest.mark.parametrize(("module", "cls"), REPLICAS[:2])
@pytest.mark.parametrize("loads", [False, True])
async def test_a_worker_that_was_loaded_is_stopped(
    module: Any, cls: Any, loads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "prepare_replica", lambda _: load_config(environ={}))
    monkeypatch.setattr(module, "Worker", Worker)
    monkeypatch.setattr(module, "_this_node", dict)
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="1"))
    monkeypatch.setattr(serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(Worker, "loads", loads)
    monkeypatch.setattr(Worker, "stopped", 0)
    await construct_and_destroy(cls, monkeypatch)
    assert Worker.stopped == loads


async def test_a_router_warns_where_serve_would_buffer_without_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name = "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD"
    for value, warnings in ((None, 1), ("1", 1), ("0", 0)):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
        caplog.clear()
        router._warn_of_serves_thread()
        assert [name in record.message for record in caplog.records] == [True] * warnings


def test_a_node_shares_its_memory_among_the_workers_that_may_start_there() -> None:
    """All of them, unless resources or CPUs pin a pool elsewhere or leave no room."""
    config = load_config(
        overrides={
            "prefill.replicas": 3,
            "decode.autoscaling.max": 5,
            "prefill.resources": {"prefill": 1},
            "decode.num_cpus": 2.0,
        },
        environ={},
    )
    for resources, count in (
        ({"CPU": 64.0, "prefill": 8.0}, 8),
        ({"CPU": 64.0}, 5),
        ({"CPU": 5.0, "prefill": 1.0}, 3),
        ({}, 1),
    ):
        assert pool.workers_on(config, {"Resources": resources, "Labels": {}}) == count


@pytest.mark.parametrize(
    ("wanted", "taken"),
    [("a", {"a"}), ("!a", {"b", "c", None}), ("in(a, b)", {"a", "b"}), ("!in(a,b)", {"c", None})],
)
def test_a_worker_counts_on_nodes_whose_labels_its_pool_selects(wanted: str, taken: set[str | None]) -> None:
    overrides = {"prefill.replicas": 4, "decode.replicas": 0, "prefill.label_selector": {"zone": wanted}}
    config = load_config(overrides=overrides, environ={})
    for label in ("a", "b", "c", None):
        node = {"Resources": {}, "Labels": {} if label is None else {"zone": label}}
        assert pool.workers_on(config, node) == (4 if label in taken else 1)


async def test_a_routers_objects_are_not_looked_through_by_later_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "prepare_replica", lambda _: load_config(environ={}))
    for name in ("DirectoryClient", "Service", "LastingTask"):
        monkeypatch.setattr(router, name, MagicMock())
    monkeypatch.setattr(router.Service(), "listen", AsyncMock())
    monkeypatch.delattr(router.Router, "__del__")  # Serve's call is the only one
    gc.unfreeze()
    await router.Router.__init__(object.__new__(router.Router), {})
    assert gc.get_freeze_count() > 10_000
    gc.unfreeze()


def kept(cls: Any) -> Any:
    """An instance without its constructor, whose __del__ is called by nobody but the test."""
    return object.__new__(type(cls.__name__, (cls,), {"__del__": lambda _: None}))


class Directory(StaticMembership):
    """A DirectoryClient without an actor; all replicas have the same one."""

    def __init__(self) -> None:
        super().__init__()
        self.members: list[Member] = []

    async def keep_registered(self, member: Callable[[], Member], heard: object = None) -> None:
        self.members.append(member())
        self.set(self.members)
        await asyncio.Event().wait()

    async def withdraw(self, member: Member) -> None:
        self.members.remove(member)
        self.set(self.members)


async def test_routers_find_each_other_by_what_they_register_until_they_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    directory = Directory()
    monkeypatch.setattr(router, "prepare_replica", lambda _: load_config(environ={}))
    monkeypatch.setattr(router, "DirectoryClient", lambda _: directory)
    replicas = [kept(router.Router) for _ in range(2)]
    for each in replicas:
        await router.Router.__init__(each, {})
    await asyncio.sleep(0)
    names = {each._service.fleet.router_id for each in replicas}
    assert {(member.id, member.pool) for member in directory.members} == {(name, "router") for name in names}
    for each in replicas:
        each._service.count("completions", 200)
        each.check_health()
    await asyncio.sleep(0)
    for each in replicas:
        shown = readings((await each._service.metrics()).decode(), "rtp_llm_requests_total", "router")
        assert shown == dict.fromkeys(names, 1)
    await router.Router.__del__(replicas[0])
    assert [member.id for member in directory.members] == [replicas[1]._service.fleet.router_id]
    await router.Router.__del__(replicas[1])
    gc.unfreeze()


@pytest.mark.parametrize(("_", "cls"), REPLICAS)
async def test_a_replica_whose_registration_has_ended_is_unhealthy(_: Any, cls: Any) -> None:
    """As one is of which another part is."""

    async def fail() -> None:
        raise OSError("gone")

    part = MagicMock()
    replica = kept(cls)
    replica._worker = replica._service = part
    replica._registration = LastingTask("the registration of w", fail())
    replica.check_health()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(TaskError, match="the registration of w has stopped: OSError: gone"):
        replica.check_health()
    replica._registration = MagicMock()
    part.check_health.side_effect = TaskError("the watch has stopped: gone")
    with pytest.raises(TaskError, match="the watch"):
        replica.check_health()


def test_wrong_settings_fail_a_router_that_begins_and_none_that_runs() -> None:
    service = MagicMock()
    service.reconfigure.side_effect = ConfigError("router.policy can't be changed")
    made: Any = SimpleNamespace(_service=service, _registration=MagicMock(), _is_up=False)
    with pytest.raises(ConfigError):
        router.Router.reconfigure(made, {"policy": "cost"})
    router.Router.check_health(made)
    router.Router.reconfigure(made, {"policy": "cost"})
    service.reconfigure.side_effect = None
    router.Router.reconfigure(made, None)
    assert service.reconfigure.call_args.args == ({},)
