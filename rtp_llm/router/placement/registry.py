"""Policies by name: the package's own, and what other distributions offer as entry points."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

from rtp_llm.config import Config
from rtp_llm.errors import ConfigError
from rtp_llm.router.placement.affinity import Affinity
from rtp_llm.router.placement.cost import Cost
from rtp_llm.router.placement.least_loaded import LeastLoaded
from rtp_llm.router.placement.mixture import Mixture
from rtp_llm.router.placement.policy import Policy, ScoringPolicy
from rtp_llm.router.placement.prefix_aware import PrefixAware
from rtp_llm.router.placement.round_robin import RoundRobin

ENTRY_POINTS = "rtp_llm.policies"  # the group; each names a callable that makes a Policy of the Config


def _cost(config: Config) -> Policy:
    return Cost(ttft_target_s=config.router.ttft_target_ms / 1e3, itl_target_s=config.engine.itl_target_ms / 1e3)


POLICIES: dict[str, Callable[[Config], Policy]] = {
    "affinity": lambda config: Affinity(),
    "cost": _cost,
    "least_loaded": lambda config: LeastLoaded(),
    "prefix_aware": lambda config: PrefixAware(),
    "round_robin": lambda config: RoundRobin(),
}


def policy_of(config: Config) -> Policy:
    """What `router.policy` asks for, made anew; one router has one.

    Raises:
        ConfigError: it names a policy that there isn't, one whose entry point can't be loaded, or mixes one that doesn't score.
    """
    asked = config.router.policy
    if isinstance(asked, str):
        return policy_named(asked, config)
    parts = [(policy_named(name, config), weight) for name, weight in asked.items()]
    for name, (policy, _) in zip(asked, parts, strict=True):
        if not isinstance(policy, ScoringPolicy):
            raise ConfigError(f"router.policy: {name!r} scores nothing, so it can't be mixed with others")
    return Mixture([(policy, weight) for policy, weight in parts if isinstance(policy, ScoringPolicy)])


def policy_named(name: str, config: Config) -> Policy:
    """
    Raises:
        ConfigError: there is no such policy, or its entry point can't be loaded.
    """
    if (own := POLICIES.get(name)) is not None:
        return own(config)
    offered = {each.name: each for each in entry_points(group=ENTRY_POINTS)}
    if name not in offered:
        raise ConfigError(f"router.policy: {name!r} is unknown, there are {', '.join(sorted({*POLICIES, *offered}))}")
    return _made(offered[name], config)


def _made(offered: EntryPoint, config: Config) -> Policy:
    try:
        make = offered.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"router.policy: {offered.name!r} is {offered.value}, which can't be loaded: {error}"
        ) from error
    policy: Policy = make(config)
    return policy
