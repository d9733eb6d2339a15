"""Policies by name: the package's own and another distribution's."""

from pathlib import Path

import pytest

from rtp_llm.config import load_config
from rtp_llm.errors import ConfigError
from rtp_llm.router.placement import DECODE, PlacementQuery, WorkerView, policy_named
from rtp_llm.router.placement.least_loaded import LeastLoaded

CONFIG = load_config(environ={})


@pytest.fixture
def other_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "other_distribution"))


def test_each_call_makes_a_policy_of_its_own() -> None:
    first, second = (policy_named("least_loaded", CONFIG) for _ in range(2))
    assert isinstance(first, LeastLoaded) and first is not second


@pytest.mark.usefixtures("other_distribution")
def test_a_policy_of_another_distribution_is_found_by_its_entry_point() -> None:
    policy = policy_named("first_by_name", CONFIG)
    views = [WorkerView(id=name, epoch=1, pool=DECODE) for name in ("b", "a")]
    placement = policy.choose({view.id: view for view in views}, PlacementQuery(prompt_tokens=1))
    assert placement is not None and placement.sender.id == "a"


@pytest.mark.usefixtures("other_distribution")
def test_an_unknown_name_is_told_all_that_there_are() -> None:
    with pytest.raises(
        ConfigError,
        match=r"'luck' is unknown, there are affinity, cost, first_by_name, least_loaded, missing, prefix_aware, round_robin",
    ):
        policy_named("luck", CONFIG)


@pytest.mark.usefixtures("other_distribution")
def test_an_entry_point_that_can_not_be_loaded_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'missing' is nearest_policy:NoSuch, which can't be loaded: .*NoSuch"):
        policy_named("missing", CONFIG)
