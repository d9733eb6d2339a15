"""PrefixAware: where the least of a prompt is left to compute, and to send."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from rtp_llm.router.placement.policy import FleetEvent, Placement, PlacementQuery, Snapshot, WorkerView
from rtp_llm.router.placement.prefix_index import PrefixHits, PrefixIndex
from rtp_llm.router.placement.ranking import Ranking
from rtp_llm.router.placement.roster import Group, Roster

LONGEST = 16  # workers with the longest hits, of both pools
BREADTH = 8  # of a group, so many of the least loaded


class PrefixAware:
    """S: the fewest tokens to compute until the prompt is done, those that wait there included. R: with room for the prompt,
    the fewest tokens that it lacks and that its decodes read. Equals by lot."""

    watches_caches = True

    def __init__(self) -> None:
        self._index = PrefixIndex()
        self._roster = Roster(sender_key=lambda view: view.queued_tokens, receiver_key=lambda view: view.context_tokens)

    def observe(self, events: Sequence[FleetEvent]) -> None:
        self._index.observe(events)
        self._roster.observe(events)

    def choose(self, snapshot: Snapshot, query: PlacementQuery) -> Placement | None:
        hits = self._index.hits(query)
        longest = hits.longest(LONGEST)
        decision = Decision(snapshot, query, hits, longest)
        return self._roster.place(snapshot, query, decision.sender, decision.receiver)

    # --- ScoringPolicy

    def proposals(self, snapshot: Snapshot, query: PlacementQuery) -> Sequence[Placement] | None:
        chosen = self.choose(snapshot, query)
        return None if chosen is None else [chosen]

    def scores(self, placements: Sequence[Placement], query: PlacementQuery) -> list[float]:
        """The part of the prompt that lies in no cache there; of S and R half each."""
        hits = self._index.hits(query)
        found = []
        for placement in placements:
            views = [each for each in (placement.sender, placement.receiver) if each is not None]
            found.append(1 - sum(map(hits.tokens, views)) / (len(views) * max(query.prompt_tokens, 1)))
        return found

    def placed(self, placement: Placement, query: PlacementQuery) -> None: ...


class Decision:
    def __init__(self, snapshot: Snapshot, query: PlacementQuery, hits: PrefixHits, longest: Iterable[str]) -> None:
        self._snapshot, self._query, self._hits, self._longest = snapshot, query, hits, longest

    def sender(self, groups: list[Group]) -> str:
        views = self._candidates([group.senders for group in groups])
        return self._least((view.queued_tokens - self._hits.tokens(view), view) for view in views)

    def receiver(self, groups: list[Group]) -> str:
        views = self._candidates([group.receivers for group in groups])
        views += [self._snapshot[group.room[0]] for group in groups]
        roomy = [view for view in views if view.free_tokens > self._query.prompt_tokens]
        return self._least((view.context_tokens - self._hits.tokens(view), view) for view in roomy or views)

    def _candidates(self, rankings: list[Ranking]) -> list[WorkerView]:
        return [self._snapshot[worker] for worker in dict.fromkeys(self._looked_at(rankings))]

    def _looked_at(self, rankings: list[Ranking]) -> Iterator[str]:
        for ranking in rankings:
            yield from islice((worker for worker in self._longest if worker in ranking), BREADTH)
            yield from self._least_loaded(ranking)

    def _least_loaded(self, ranking: Ranking) -> Iterable[str]:
        """Of equals some by lot: a fleet that has nothing to do isn't its first workers."""
        equals = ranking.count_up_to(ranking.best)
        if equals <= BREADTH:
            return islice(ranking, BREADTH)
        return (ranking[self._query.random.randrange(equals)] for _ in range(BREADTH))

    def _least(self, candidates: Iterable[tuple[int, WorkerView]]) -> str:
        keyed = list(candidates)
        least = min(key for key, _ in keyed)
        return self._query.random.choice([view.id for key, view in keyed if key == least])
