"""Placement policies: where a request runs. docs/placement.md."""

from rtp_llm.router.placement.policy import (
    DECODE,
    PREFILL,
    FleetEvent,
    Placement,
    PlacementQuery,
    Policy,
    Prediction,
    Predictor,
    Snapshot,
    StepMeasured,
    ViewChanged,
    WorkerGone,
    WorkerView,
)
from rtp_llm.router.placement.registry import policy_named

__all__ = [
    "DECODE",
    "PREFILL",
    "FleetEvent",
    "Placement",
    "PlacementQuery",
    "Policy",
    "Prediction",
    "Predictor",
    "Snapshot",
    "StepMeasured",
    "ViewChanged",
    "WorkerGone",
    "WorkerView",
    "policy_named",
]
