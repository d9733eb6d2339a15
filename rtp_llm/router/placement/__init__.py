"""Placement policies: where a request runs. docs/placement.md."""

from rtp_llm.router.placement.policy import (
    DECODE,
    PREFILL,
    CacheChanged,
    CacheReset,
    FleetEvent,
    Placement,
    PlacementQuery,
    Policy,
    Prediction,
    Predictor,
    ScoringPolicy,
    Snapshot,
    StepMeasured,
    ViewChanged,
    WorkerGone,
    WorkerView,
    watches_caches,
)
from rtp_llm.router.placement.registry import policy_named, policy_of

__all__ = [
    "DECODE",
    "PREFILL",
    "CacheChanged",
    "CacheReset",
    "FleetEvent",
    "Placement",
    "PlacementQuery",
    "Policy",
    "Prediction",
    "Predictor",
    "ScoringPolicy",
    "Snapshot",
    "StepMeasured",
    "ViewChanged",
    "WorkerGone",
    "WorkerView",
    "policy_named",
    "policy_of",
    "watches_caches",
]
