"""Cost: where predicted TTFT and ITL take the least of their targets.

S and R are chosen together; a worker alone, of either pool, is a candidate like any pair. docs/placement.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from rtp_llm.router.placement.policy import (
    FleetEvent,
    Placement,
    PlacementQuery,
    Prediction,
    Snapshot,
    StepMeasured,
    ViewChanged,
    WorkerGone,
    WorkerView,
)
from rtp_llm.router.placement.prefix_index import PrefixHits, PrefixIndex
from rtp_llm.router.placement.ranking import Ranking
from rtp_llm.router.placement.roster import Group, Kind, Roster
from rtp_llm.router.placement.step_cost import StepCost

BREADTH = (
    8  # of a group, so many are looked at that are soonest idle (half as many that decode least), and so many receivers
)
MIN_PREFILL_ROWS = 16  # that an engine computes beside decodes at least
FULL_TTFT = 0.9  # of a target: beyond it an error of the prediction may break it
FULL_ITL = 0.95
STEEP = 3.0  # what a target costs beyond that, against its square below
PAIR = 0.3  # what a pair must be better by: it reads the weights on two workers
WIRE = (
    0.3  # KV that a receiver lacks, of what its computation costs: sent while it is computed, it takes less than that
)
LONGEST = 16  # workers with the longest hits, before it is known which of them may be candidates
CROWD = (
    1.0  # what a worker costs that has just got another prompt: it fades with the step in which that one is computed
)
OWN_AFTER = 30  # steps of a worker, of which each corrects what is known of all, it is corrected by its own alone
FADED = 20.0  # steps
DOUBTED_AFTER_S = 10.0  # what is known of a worker that has shown no step for so long is no ground to refuse anything
SHARE_WEIGHT = 0.02  # of the newest step in a pool's share of steps with prefill
UNKNOWN = StepCost()


class WorkerState:
    """A worker's view, what its steps have shown, and the prefill that it still has to do."""

    def __init__(self, view: WorkerView, cost: StepCost) -> None:
        self.view = view
        self.pool = view.pool
        self.cost = cost  # the fleet's, until it has shown OWN_AFTER steps
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

    def viewed(self, view: WorkerView, itl_target_s: float) -> None:
        cost = self.cost
        self.beside_s = cost.sequence_s * view.sequences + cost.context_s * view.context_tokens
        self.left_of_step_s = max(itl_target_s - self.beside_s, MIN_PREFILL_ROWS * cost.row_s, 1e-9)
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

    def ttft_s(self, prompt_tokens: int, cached_tokens: int, now: float) -> float:
        """Of a prompt, less what is cached of it, behind what is ahead of it: by itself, or beside decodes in as many steps as
        the engine makes of it, one and a half at least (half of the one that runs, on average)."""
        cost = self.cost
        work = self.left_s(now) + cost.prompt_s(prompt_tokens, cached_tokens)
        if self.view.sequences == 0:
            return work
        steps = max(work / self.left_of_step_s, 1.5)
        return steps * self.beside_s + math.hypot(work, 1.5 * cost.base_s)


class Question(NamedTuple):
    """What of a query a prediction needs, and the targets that hold for it."""

    prompt_tokens: int
    now: float
    waited_s: float
    ttft_target_s: float
    itl_target_s: float
    hits: PrefixHits
    longest: Mapping[str, int]  # tokens that the workers with the longest hits have, of both pools

    def work_s(self, state: WorkerState) -> float:
        """Of the prompt there."""
        return state.cost.prompt_s(self.prompt_tokens, self.hits.tokens(state.view))

    def ttft_s(self, state: WorkerState) -> float:
        """There, from now."""
        return state.ttft_s(self.prompt_tokens, self.hits.tokens(state.view), self.now)


class Candidate(NamedTuple):
    lateness: float
    sender: WorkerState
    receiver: WorkerState | None

    @property
    def placement(self) -> Placement:
        return Placement(sender=self.sender.view, receiver=None if self.receiver is None else self.receiver.view)


class Cost:
    watches_caches = True

    def __init__(
        self,
        *,
        ttft_target_s: float,
        itl_target_s: float,
        breadth: int | None = BREADTH,
        known: StepCost = UNKNOWN,
    ) -> None:
        """Targets of requests that bring none; `itl_target_s` is also what engines leave decodes of a step. `breadth` None: all
        workers are looked at. `known`: what steps are taken to cost until they were measured."""
        self._ttft_target_s = ttft_target_s
        self._itl_target_s = itl_target_s
        self._breadth = breadth
        self._fleet_cost = known.copy()
        self._states: dict[str, WorkerState] = {}
        self._index = PrefixIndex()
        self._asked: tuple[PlacementQuery, Question] | None = None  # the last, until something has happened
        self._prefill_share: dict[str, float] = {}  # by pool: of the steps with decodes, with prefill beside them
        self._roster = Roster(
            sender_key=lambda view: self._states[view.id].empty_at,
            receiver_key=lambda view: self._states[view.id].decode_s,
        )

    # --- Policy

    def observe(self, events: Sequence[FleetEvent]) -> None:
        self._asked = None
        for event in events:
            if isinstance(event, StepMeasured):
                self._measured(event)
                continue
            self._index.observe([event])
            if isinstance(event, ViewChanged):
                self._viewed(event.view)
            self._roster.observe([event])
            if isinstance(event, WorkerGone):
                self._states.pop(event.id, None)

    def choose(self, snapshot: Snapshot, query: PlacementQuery) -> Placement | None:
        question = self._question(query)
        best = self._best(query, question)
        if best is None or self._had_better_wait(best, question):
            return None
        best.sender.add(question.work_s(best.sender), query.now)
        return best.placement

    # --- ScoringPolicy

    def proposals(self, snapshot: Snapshot, query: PlacementQuery) -> Sequence[Placement] | None:
        question = self._question(query)
        best = self._best(query, question)
        return None if best is None or self._had_better_wait(best, question) else [best.placement]

    def scores(self, placements: Sequence[Placement], query: PlacementQuery) -> list[float]:
        """What the prediction takes of the targets, as `choose` weighs it."""
        question = self._question(query)
        return [self._cost_of(placement, question) for placement in placements]

    def placed(self, placement: Placement, query: PlacementQuery) -> None:
        sender = self._states[placement.sender.id]
        sender.add(self._question(query).work_s(sender), query.now)

    # --- Predictor, and what else can be asked

    @property
    def fleet_cost(self) -> StepCost:
        """What the first steps of all workers have shown."""
        return self._fleet_cost

    def lateness(self, query: PlacementQuery) -> float:
        """Of the best candidate, whether it is chosen or had better wait; infinite: nobody takes it now."""
        best = self._best(query, self._question(query))
        return math.inf if best is None else best.lateness

    def predicted(self, snapshot: Snapshot, query: PlacementQuery) -> Prediction | None:
        """At the earliest: those that accept nothing now will, and what goes first is shared evenly among all. None: nobody
        could take it, or an idle worker may do better than when it was last seen at work."""
        question = self._question(query)
        groups = [group for kind, group in self._roster.groups.items() if kind.holds(query.prompt_tokens + 1)]
        states = [state for group in groups for state in self._accepting(group, question)]
        states = states or [self._states[id] for group in groups for id in islice(group.full, self._breadth)]
        if not states:
            return None
        soonest = min(states, key=question.ttft_s)
        if query.tokens_ahead == 0 and soonest.may_have_changed(query.now):
            return None
        ahead_s = soonest.cost.row_s * query.tokens_ahead / self._roster.num_workers
        return Prediction(ahead_s + question.ttft_s(soonest), min(map(question.work_s, states)))

    def _question(self, query: PlacementQuery) -> Question:
        """A mixture asks several times in one decision."""
        if self._asked is None or self._asked[0] is not query:
            self._asked = query, self._new_question(query)
        return self._asked[1]

    def _new_question(self, query: PlacementQuery) -> Question:
        hits = self._index.hits(query)
        return Question(
            query.prompt_tokens,
            query.now,
            query.waited_s,
            query.ttft_target_s or self._ttft_target_s,
            query.itl_target_s or self._itl_target_s,
            hits,
            hits.longest(LONGEST),
        )

    # --- What workers show

    def _measured(self, event: StepMeasured) -> None:
        state = self._states.get(event.id)
        if state is None:
            return
        state.num_steps += 1
        state.measured_at = state.view.load_at
        if state.num_steps == OWN_AFTER:
            state.cost = self._fleet_cost.copy()
        state.cost.observe(event.step, event.seconds)
        if event.step.decode_rows:
            share = self._prefill_share.get(state.pool, 0.0)
            self._prefill_share[state.pool] = share + SHARE_WEIGHT * ((event.step.prefill_rows > 0) - share)

    def _viewed(self, view: WorkerView) -> None:
        state = self._states.get(view.id)
        if state is None:
            state = self._states[view.id] = WorkerState(view, self._fleet_cost)
        state.viewed(view, self._itl_target_s)

    # --- Candidates

    def _best(self, query: PlacementQuery, question: Question) -> Candidate | None:
        """Of workers that would run it alone, and pairs. What S and R cost doesn't depend on each other, so the best S of a
        group stands for all; what costs more than the best so far by one of its parts is looked at no further."""
        best: Candidate | None = None
        least = math.inf
        for kind, group in self._roster.groups.items():
            can_run, can_send = kind.holds(query.total_tokens), not kind.decodes and kind.holds(query.prompt_tokens + 1)
            if not group.senders or not (can_run or can_send):
                continue
            sender, soonest = None, math.inf
            for state in self._accepting(group, question):
                late = self._late(state, question)
                if late < soonest:
                    sender, soonest = state, late
                if can_run and late < least and (lateness := late + self._slow(state, question)) < least:
                    best, least = Candidate(lateness, state, None), lateness
            if sender is None or not can_send or query.must_run_alone:
                continue
            for state in self._receivers(kind, query, question):
                lateness = soonest + PAIR + self._slow(state, question) - self._not_sent(state, question)
                if lateness < least:
                    best, least = Candidate(lateness, sender, state), lateness
        return best

    def _receivers(self, sending: Kind, query: PlacementQuery, question: Question) -> Iterator[WorkerState]:
        for kind, group in self._roster.groups.items():
            if kind.decodes and kind.layout == sending.layout and kind.holds(query.total_tokens):
                yield from self._receiving(group, question)

    def _accepting(self, group: Group, question: Question) -> Iterator[WorkerState]:
        """Those that are soonest idle, those that decode least, and those with the longest hits."""
        looked_at = dict.fromkeys(islice(group.senders, self._breadth))
        half = None if self._breadth is None else self._breadth // 2
        looked_at.update(dict.fromkeys(id for id in islice(group.receivers, half) if id in group.senders))
        looked_at.update(dict.fromkeys(self._that_hold_more(group.senders, question)))
        return map(self._states.__getitem__, looked_at)

    def _receiving(self, group: Group, question: Question) -> Iterator[WorkerState]:
        """With room: those that decode least, and those with the longest hits."""
        states = map(self._states.__getitem__, group.receivers)
        roomy = (state for state in states if state.view.free_tokens > question.prompt_tokens)
        looked_at = {state.view.id: state for state in islice(roomy, self._breadth)}
        for id in self._that_hold_more(group.receivers, question):
            if (state := self._states[id]).view.free_tokens > question.prompt_tokens:
                looked_at[id] = state
        return iter(looked_at.values())

    def _that_hold_more(self, ranking: Ranking, question: Question) -> Sequence[str]:
        """Of those with the longest hits: who holds more than the best by other counts."""
        if not question.longest or not ranking:
            return ()
        held = question.hits.tokens(self._states[ranking[0]].view)
        return [id for id, tokens in question.longest.items() if tokens > held and id in ranking][: self._breadth]

    def _cost_of(self, placement: Placement, question: Question) -> float:
        late = self._late(self._states[placement.sender.id], question)
        if placement.receiver is None:
            return late + self._slow(self._states[placement.sender.id], question)
        receiver = self._states[placement.receiver.id]
        return late + PAIR + self._slow(receiver, question) - self._not_sent(receiver, question)

    def _late(self, state: WorkerState, question: Question) -> float:
        cached = question.hits.tokens(state.view)
        ttft = question.waited_s + state.ttft_s(question.prompt_tokens, cached, question.now)
        late = _lateness(ttft / question.ttft_target_s, FULL_TTFT)
        since, base = question.now - state.placed_at, state.cost.base_s
        return late + CROWD * math.exp(-since / base) if since < FADED * base else late

    def _slow(self, state: WorkerState, question: Question) -> float:
        return _lateness(self._itl(state, question) / question.itl_target_s, FULL_ITL)

    def _itl(self, state: WorkerState, question: Question) -> float:
        """Steps of decodes alone, and those with prefill, which the engine lets last as long as its target."""
        decode = state.decode_s + state.cost.context_s * question.prompt_tokens
        left = self._itl_target_s - decode
        return decode + self._prefill_share.get(state.pool, 0.0) * left if left > 0 else decode

    def _not_sent(self, state: WorkerState, question: Question) -> float:
        """What a receiver has of the prompt needs not to be sent."""
        return WIRE * state.cost.row_s * question.hits.tokens(state.view) / question.ttft_target_s

    def _had_better_wait(self, best: Candidate, question: Question) -> bool:
        """Where all decode too slowly now, while there is time: if the worker, were it idle, would be fast enough."""
        decoder = best.receiver or best.sender
        itl, idle = self._itl(decoder, question), decoder.cost.decode_s(1, question.prompt_tokens)
        ttft = question.waited_s + question.ttft_s(best.sender)
        return itl > question.itl_target_s >= idle and ttft < FULL_TTFT * question.ttft_target_s


def _lateness(part: float, full: float) -> float:
    """Of a prediction that takes `part` of its target."""
    return part * part + STEEP * (part - full) if part > full else part * part
