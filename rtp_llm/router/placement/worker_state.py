"""WorkerState: what the policy `cost` knows of one worker, and what it predicts there."""

from __future__ import annotations

import math
from typing import NamedTuple

from rtp_llm.router.placement.link import Links
from rtp_llm.router.placement.policy import WorkerView
from rtp_llm.router.placement.prefix_index import PrefixHits
from rtp_llm.router.placement.step_cost import StepCost

MIN_PREFILL_ROWS = 16  # that an engine computes beside decodes at least
FULL_TTFT = 0.9  # of a target: beyond it an error of the prediction may break it
FULL_ITL = 0.95
STEEP = 3.0  # what a target costs beyond that, against its square below
# What a worker costs that has just got another prompt: it fades with the step in which that one is computed.
CROWD = 1.0
FADED = 20.0  # steps
DOUBTED_AFTER_S = 10.0  # what is known of a worker that has shown no step for so long is no ground to refuse anything
SHARE_WEIGHT = 0.02  # of the newest step in a pool's share of steps with prefill


class Question(NamedTuple):
    """What of a query a prediction needs, and the targets that hold for it."""

    prompt_tokens: int
    now: float
    waited_s: float
    ttft_target_s: float
    itl_target_s: float
    hits: PrefixHits


class PoolSteps:
    """Of the steps with decodes of one pool's workers."""

    def __init__(self, itl_target_s: float) -> None:
        """`itl_target_s`: how long the engine lets a step with prefill last."""
        self.itl_target_s = itl_target_s
        self.prefill_share = 0.0  # those with prefill beside them

    def observe(self, *, with_prefill: bool) -> None:
        self.prefill_share += SHARE_WEIGHT * (with_prefill - self.prefill_share)


class WorkerState:
    """A worker's view, what its steps have shown, and the prefill that it still has to do."""

    def __init__(self, view: WorkerView, cost: StepCost, pool: PoolSteps) -> None:
        self.view = view
        self.pool = pool
        self.cost = cost  # the fleet's, until it has shown enough steps of its own
        self.links = Links()
        self.num_steps = 0
        self.measured_at = -math.inf  # the last of them, by the router's clock
        self.backlog_s = 0.0  # computation of prompts, at `backlog_at` by the router's clock
        self.backlog_at = -math.inf
        self.placed_at = -math.inf
        # Of the view, for many decisions.
        self.beside_s = 0.0  # what decodes take of a step that reads the weights anyway
        self.left_of_step_s = 1.0  # what the engine gives prefill of a step beside them
        self.drain = 1.0  # seconds of the backlog that a second of steps does
        self.decode_s = 0.0  # a step with one sequence more, its context not counted

    def viewed(self, view: WorkerView) -> None:
        cost = self.cost
        self.beside_s = cost.sequence_s * view.sequences + cost.context_s * view.context_tokens
        self.left_of_step_s = max(self.pool.itl_target_s - self.beside_s, MIN_PREFILL_ROWS * cost.row_s, 1e-9)
        self.drain = self.left_of_step_s / (self.left_of_step_s + self.beside_s)
        self.decode_s = cost.decode_s(view.sequences + 1, view.context_tokens)
        if view.load_at != self.view.load_at or self.backlog_at == -math.inf:
            self.backlog_s, self.backlog_at = cost.row_s * view.queued_tokens, view.load_at
        self.view = view

    def left_s(self, now: float) -> float:
        """Of the backlog."""
        left = self.backlog_s - (now - self.backlog_at) * self.drain
        return left if left > 0 else 0.0

    def add(self, work_s: float, now: float) -> None:
        self.backlog_s = self.left_s(now) + work_s
        self.backlog_at = self.placed_at = now

    def may_have_changed(self, now: float) -> bool:
        """It has nothing to do, and no step of it was seen for long."""
        return self.view.sequences == 0 and self.left_s(now) == 0 and now - self.measured_at > DOUBTED_AFTER_S

    @property
    def empty_at(self) -> float:
        return self.backlog_at + self.backlog_s / self.drain

    def work_s(self, asked: Question) -> float:
        """Of the prompt, less what is cached of it here."""
        return self.cost.prompt_s(asked.prompt_tokens, asked.hits.tokens(self.view))

    def ttft_s(self, asked: Question) -> float:
        """From now, behind the prompts that are ahead of it: by itself, or beside decodes in as many steps as the engine makes
        of it, one and a half at least (half of the one that runs, on average)."""
        cost, prompt = self.cost, asked.prompt_tokens
        cached = asked.hits.tokens(self.view)
        rows = prompt - cached
        work = cost.row_s * rows + cost.pair_s * rows * (cached + prompt) / 2
        left = self.backlog_s - (asked.now - self.backlog_at) * self.drain
        if left > 0:
            work += left
        if self.beside_s == 0:
            return work
        steps = work / self.left_of_step_s
        return (steps if steps > 1.5 else 1.5) * self.beside_s + math.hypot(work, 1.5 * cost.base_s)

    def late(self, asked: Question) -> float:
        """What the time to the first token costs."""
        part = (asked.waited_s + self.ttft_s(asked)) / asked.ttft_target_s
        late = part * part + STEEP * (part - FULL_TTFT) if part > FULL_TTFT else part * part
        since, base_s = asked.now - self.placed_at, self.cost.base_s
        return late + CROWD * math.exp(-since / base_s) if since < FADED * base_s else late

    def itl_s(self, asked: Question) -> float:
        """Steps of decodes alone, and those with prefill, which the engine lets last as long as its target."""
        decode = self.decode_s + self.cost.context_s * asked.prompt_tokens
        left = self.pool.itl_target_s - decode
        return decode + self.pool.prefill_share * left if left > 0 else decode

    def slow(self, asked: Question) -> float:
        """What the time between tokens costs."""
        part = self.itl_s(asked) / asked.itl_target_s
        return part * part + STEEP * (part - FULL_ITL) if part > FULL_ITL else part * part
