"""A placement policy of another distribution: what such a package holds, found by its entry point."""

from collections.abc import Sequence

from rtp_llm.config import Config
from rtp_llm.router.placement import FleetEvent, Placement, PlacementQuery, Snapshot


class FirstByName:
    """The worker whose id comes first runs everything alone. It looks at the snapshot and needs no events."""

    def __init__(self, config: Config) -> None:
        self.model = config.served_name

    def observe(self, events: Sequence[FleetEvent]) -> None: ...

    def choose(self, snapshot: Snapshot, query: PlacementQuery) -> Placement | None:
        able = [view for view in snapshot.values() if view.accepts and view.holds(query.total_tokens)]
        return Placement(sender=min(able, key=lambda view: view.id)) if able else None
