"""Cost: where predicted TTFT and ITL take the least of their targets.

S and R are chosen together; a worker alone, of either pool, is a candidate like any pair. docs/placement.md.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

from rtp_llm.router.placement.link import FIXED_TOKENS, Link
from rtp_llm.router.placement.policy import (
    FleetEvent,
    HandoverMeasured,
    Placement,
    PlacementQuery,
    Prediction,
    Snapshot,
    StepMeasured,
    ViewChanged,
    WorkerGone,
    WorkerView,
)
from rtp_llm.router.placement.prefix_index import PrefixIndex
from rtp_llm.router.placement.ranking import Ranking
from rtp_llm.router.placement.roster import Group, Kind, Roster
from rtp_llm.router.placement.step_cost import StepCost
from rtp_llm.router.placement.worker_state import FULL_TTFT, PoolSteps, Question, WorkerState

# Of a group, so many are looked at that are soonest idle (half as many that decode least), and so many receivers.
BREADTH = 8
PAIR = 0.2  # what a pair costs besides its handover: it reads the weights on two workers
WIRE = 0.3  # of what its computation takes, what a token's handover is taken to take until one was measured
OWN_AFTER = 30  # steps of a worker, of which each corrects what is known of all, it is corrected by its own alone
UNKNOWN = StepCost()

_FIRST = operator.itemgetter(0)


class Candidate(NamedTuple):
    lateness: float
    sender: WorkerState
    receiver: WorkerState | None

    def placement(self, asked: Question) -> Placement:
        if self.receiver is None:
            return Placement(sender=self.sender.view)
        view = self.receiver.view
        return Placement(
            sender=self.sender.view, receiver=view, tokens_sent=asked.prompt_tokens - asked.hits.tokens(view)
        )


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
        self._fleet_link = Link()  # of all handovers, for pairs of which nothing is known
        self._states: dict[str, WorkerState] = {}
        self._pools: dict[str, PoolSteps] = {}
        self._index = PrefixIndex()
        self._asked: tuple[PlacementQuery, Question] | None = None  # the last, until something has happened
        self._roster = Roster(
            sender_key=lambda view: self._states[view.id].empty_at,
            receiver_key=lambda view: self._states[view.id].decode_s,
        )

    # --- Policy

    def observe(self, events: Sequence[FleetEvent]) -> None:
        self._asked = None
        for event in events:
            if isinstance(event, StepMeasured):
                self._step_measured(event)
                continue
            if isinstance(event, HandoverMeasured):
                self._handover_measured(event)
                continue
            self._index.observe([event])
            if isinstance(event, ViewChanged):
                self._viewed(event.view)
            self._roster.observe([event])
            if isinstance(event, WorkerGone):
                self._states.pop(event.id, None)

    def choose(self, snapshot: Snapshot, query: PlacementQuery) -> Placement | None:
        asked = self._question(query)
        best = self._best(query, asked)
        if best is None or self._had_better_wait(best, asked):
            return None
        best.sender.add(best.sender.work_s(asked), query.now)
        return best.placement(asked)

    # --- ScoringPolicy

    def proposals(self, snapshot: Snapshot, query: PlacementQuery) -> Sequence[Placement] | None:
        asked = self._question(query)
        best = self._best(query, asked)
        return None if best is None or self._had_better_wait(best, asked) else [best.placement(asked)]

    def scores(self, placements: Sequence[Placement], query: PlacementQuery) -> list[float]:
        """What the prediction takes of the targets, as `choose` weighs it."""
        asked = self._question(query)
        return [self._cost_of(placement, asked) for placement in placements]

    def placed(self, placement: Placement, query: PlacementQuery) -> None:
        sender = self._states[placement.sender.id]
        sender.add(sender.work_s(self._question(query)), query.now)

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
        asked = self._question(query)
        groups = [group for kind, group in self._roster.groups.items() if kind.takes(query, query.prompt_tokens + 1)]
        states = [state for group in groups for state in self._accepting(group, asked)]
        states = states or [self._states[id] for group in groups for id in group.full.first(self._breadth)]
        if not states:
            return None
        soonest = min(states, key=lambda state: state.ttft_s(asked))
        if query.tokens_ahead == 0 and soonest.may_have_changed(query.now):
            return None
        ahead_s = soonest.cost.row_s * query.tokens_ahead / self._roster.num_workers
        return Prediction(ahead_s + soonest.ttft_s(asked), min(state.work_s(asked) for state in states))

    def _question(self, query: PlacementQuery) -> Question:
        """A mixture asks several times in one decision."""
        if self._asked is None or self._asked[0] is not query:
            self._asked = query, self._new_question(query)
        return self._asked[1]

    def _new_question(self, query: PlacementQuery) -> Question:
        return Question(
            query.prompt_tokens,
            query.now,
            query.waited_s,
            query.ttft_target_s or self._ttft_target_s,
            query.itl_target_s or self._itl_target_s,
            self._index.hits(query),
        )

    # --- What workers show

    def _step_measured(self, event: StepMeasured) -> None:
        state = self._states.get(event.id)
        if state is None:
            return
        state.num_steps += 1
        state.measured_at = state.view.load_at
        if state.num_steps == OWN_AFTER:
            state.cost = self._fleet_cost.copy()
        state.cost.observe(event.step, event.seconds)
        if event.step.decode_rows:
            state.pool.observe(with_prefill=event.step.prefill_rows > 0)

    def _handover_measured(self, event: HandoverMeasured) -> None:
        token_s, unknown = event.seconds / (event.tokens_sent + FIXED_TOKENS), self._handover_token_s
        sender, receiver = self._states.get(event.sender), self._states.get(event.receiver)
        if sender is not None:
            sender.links.sent(token_s, event.at, unknown)
        if receiver is not None:
            receiver.links.received(event.sender, token_s, event.at, unknown)
        self._fleet_link.observe(token_s, event.at, unknown)

    @property
    def _handover_token_s(self) -> float:
        """Of a link of which nothing is known: as the mean of all, but never so slow that it wouldn't be tried."""
        assumed, known = WIRE * self._fleet_cost.row_s, self._fleet_link
        return min(known.token_s, assumed) if known.measured_at > -math.inf else assumed

    def _viewed(self, view: WorkerView) -> None:
        state = self._states.get(view.id)
        if state is None:
            if view.pool not in self._pools:
                self._pools[view.pool] = PoolSteps(self._itl_target_s)
            state = self._states[view.id] = WorkerState(view, self._fleet_cost, self._pools[view.pool])
        state.viewed(view)

    # --- Candidates

    def _best(self, query: PlacementQuery, asked: Question) -> Candidate | None:
        """Of workers that would run it alone, and pairs. What costs more than the best so far by one of its parts alone is
        looked at no further."""
        best: Candidate | None = None
        least = math.inf
        sending: list[tuple[Kind, list[WorkerState]]] = []
        for kind, group in self._roster.groups.items():
            can_run = kind.takes(query, query.total_tokens)
            can_send = not kind.decodes and kind.takes(query, query.prompt_tokens + 1)
            if not group.senders or not (can_run or can_send):
                continue
            states = self._accepting(group, asked)
            if can_send and not query.must_run_alone:
                sending.append((kind, states))
            if not can_run:
                continue
            for slow, state in sorted([(state.slow(asked), state) for state in states], key=_FIRST):
                if slow >= least:
                    break
                if (lateness := slow + state.late(asked)) < least:
                    best, least = Candidate(lateness, state, None), lateness
        for kind, states in sending:
            if least > PAIR and (pair := self._best_pair(states, self._receivers(kind, query, asked), asked, least)):
                best, least = pair, pair.lateness
        return best

    def _best_pair(
        self, senders: list[WorkerState], receivers: list[WorkerState], asked: Question, least: float
    ) -> Candidate | None:
        """That costs less than `least`."""
        by_slow = [(PAIR + state.slow(asked), state) for state in receivers]
        if not by_slow or min(by_slow, key=_FIRST)[0] >= least:
            return None
        by_late = sorted([(state.late(asked), state) for state in senders], key=_FIRST)
        best: Candidate | None = None
        now, target, unknown = asked.now, asked.ttft_target_s, self._handover_token_s
        least_sent = min(state.links.sent_token_s(now, unknown) for state in senders)
        for slow, receiver in by_slow:
            if by_late[0][0] + slow >= least:
                continue
            links, tokens = receiver.links, self._to_send(receiver, asked)
            at_least = slow + tokens * links.least_token_s(least_sent, now, unknown) / target
            for late, sender in by_late:
                if late + at_least >= least:
                    break
                token_s = links.token_s(sender.view.id, sender.links, now, unknown)
                if (lateness := late + slow + tokens * token_s / target) < least:
                    best, least = Candidate(lateness, sender, receiver), lateness
        return best

    def _to_send(self, receiver: WorkerState, asked: Question) -> int:
        """Tokens whose KV it lacks, and what a handover takes besides."""
        return asked.prompt_tokens - asked.hits.tokens(receiver.view) + FIXED_TOKENS

    def _receivers(self, sending: Kind, query: PlacementQuery, asked: Question) -> list[WorkerState]:
        found: list[WorkerState] = []
        for kind, group in self._roster.groups.items():
            if kind.decodes and kind.layout == sending.layout and kind.takes(query, query.total_tokens):
                found += self._receiving(group, asked)
        return found

    def _accepting(self, group: Group, asked: Question) -> list[WorkerState]:
        """Those that are soonest idle, those that decode least, and those with the longest hits."""
        senders = group.senders
        looked_at = senders.first(self._breadth)
        half = None if self._breadth is None else self._breadth // 2
        looked_at += [id for id in group.receivers.first(half) if id in senders]
        looked_at += self._that_hold_more(senders, asked)
        return list(map(self._states.__getitem__, dict.fromkeys(looked_at)))

    def _receiving(self, group: Group, asked: Question) -> Iterable[WorkerState]:
        """With room: those that decode least, and those with the longest hits."""
        states = map(self._states.__getitem__, group.receivers)
        roomy = (state for state in states if state.view.free_tokens > asked.prompt_tokens)
        looked_at = {state.view.id: state for state in islice(roomy, self._breadth)}
        for id in self._that_hold_more(group.receivers, asked):
            if (state := self._states[id]).view.free_tokens > asked.prompt_tokens:
                looked_at[id] = state
        return looked_at.values()

    def _that_hold_more(self, ranking: Ranking, asked: Question) -> Sequence[str]:
        """Of those with the longest hits: who holds more than the best by other counts."""
        if not ranking:
            return ()
        held = asked.hits.tokens(self._states[ranking[0]].view)
        return list(islice((id for id in asked.hits.holders(held) if id in ranking), self._breadth))

    def _cost_of(self, placement: Placement, asked: Question) -> float:
        sender = self._states[placement.sender.id]
        if placement.receiver is None:
            return sender.late(asked) + sender.slow(asked)
        receiver = self._states[placement.receiver.id]
        token_s = receiver.links.token_s(sender.view.id, sender.links, asked.now, self._handover_token_s)
        wire_s = self._to_send(receiver, asked) * token_s
        return sender.late(asked) + PAIR + receiver.slow(asked) + wire_s / asked.ttft_target_s

    def _had_better_wait(self, best: Candidate, asked: Question) -> bool:
        """Where all decode too slowly now, while there is time: if the worker, were it idle, would be fast enough."""
        decoder = best.receiver or best.sender
        itl, idle = decoder.itl_s(asked), decoder.cost.decode_s(1, asked.prompt_tokens)
        ttft = asked.waited_s + best.sender.ttft_s(asked)
        return itl > asked.itl_target_s >= idle and ttft < FULL_TTFT * asked.ttft_target_s
