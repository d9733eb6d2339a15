"""ServeDelays: when Serve does what an autoscaling policy wants. As its own autoscaling_policy.py has it; a test compares."""

from __future__ import annotations

from dataclasses import dataclass

from rtp_llm.config import PoolAutoscalingSettings

ROUNDING_S = 1e-6  # that a difference of two times may be too short


@dataclass
class ServeDelays:
    """Of one pool."""

    settings: PoolAutoscalingSettings
    _direction: int = 0  # +1: more were wanted since `_since`
    _since: float = 0.0

    def target(self, desired: int, *, running: int, target: int, now: float) -> int:
        """What the target is from now on, where the policy wants `desired`."""
        if running == 0 and desired > 0:
            return desired
        direction = (desired > target) - (desired < target)
        if direction != self._direction:
            self._direction, self._since = direction, now
        if direction == 0 or now - self._since + ROUNDING_S < self._delay_s(direction, target):
            return target
        self._direction = 0
        return desired if direction > 0 or target == 1 else max(desired, 1)

    def _delay_s(self, direction: int, target: int) -> float:
        if direction > 0:
            return self.settings.upscale_delay_s
        return self.settings.downscale_to_zero_delay_s if target == 1 else self.settings.downscale_delay_s
