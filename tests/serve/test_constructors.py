"""Replicas whose constructor fails: Serve awaits their __del__ too."""

import gc
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest
from ray import serve

from rtp_llm.config import load_config
from rtp_llm.decode.deployment import DecodeWorker
from rtp_llm.errors import ModelLoadError
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
            "decode.replicas": 5,
            "prefill.resources": {"prefill": 1},
            "decode.num_cpus": 2.0,
        },
        environ={},
    )
    assert pool.workers_on(config, {"CPU": 64.0, "prefill": 8.0}) == 8
    assert pool.workers_on(config, {"CPU": 64.0}) == 5
    assert pool.workers_on(config, {"CPU": 5.0, "prefill": 1.0}) == 3
    assert pool.workers_on(config, {}) == 1


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
