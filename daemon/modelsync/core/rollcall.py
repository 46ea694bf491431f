"""Who is there, and whose report must be read again: so that a fleet of a thousand does not read itself all day.

Each node writes, beside its report, a **beat**: one text in one hash, ``CHANGE BEAT``. CHANGE is another one whenever
the report says something else, BEAT with each report. Whoever looks reads that hash, one command, and then the reports
that have changed: all of them in a small fleet or for the primary, so many at once for everybody else in a large one.
A node is alive as long as its beat moves, by the looker's own clock; nobody else's is asked.

Not believed: that a beat exists (daemons of an earlier release write none), that the hash survives, that a change was
seen. So the report of whoever stands still is read again before it counts as gone, and with each look the one that was
read longest ago.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from modelsync.core.status import UNREAD, NodeReport

AT_ONCE = 64
"""Changed reports that a node of a large fleet reads with one look: fewer nodes than that are read whole."""
SILENT_AT_ONCE = 8
SUSPECT_S = 6.0
"""Three beats that did not come: its report's own age is asked."""
LOOK_S = 2.0
SLOWEST_LOOK_S = 10.0
NODES_PER_LOOK_S = 50
"""Where a node looks each 2 s in a fleet of 100, it looks each 10 s in one of 500: Redis sends so much to each."""
GONE_S = 3600.0
"""As long as a report lasts."""


def look_every_s(nodes: int, *, primary: bool) -> float:
    """How often a node looks who is there."""
    return LOOK_S if primary else min(SLOWEST_LOOK_S, max(LOOK_S, nodes / NODES_PER_LOOK_S))


@dataclass(slots=True)
class _Known:
    beat: str = ""
    change: str = ""
    read: str | None = None
    """The change whose report was read; None: none was."""
    read_s: float = float("-inf")
    alive_s: float = float("-inf")
    report: NodeReport | None = None


@dataclass
class RollCall:
    """What one node knows of all others, and of itself. Times are of its own clock."""

    _known: dict[str, _Known] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._known)

    def looked(self, names: Iterable[str], beats: Mapping[str, str], now_s: float) -> None:
        """A look has come back: who belongs to the fleet, and the beats that there are."""
        self._known = {name: self._known.get(name) or _Known() for name in names}
        for name, known in self._known.items():
            beat = beats.get(name, "")
            if beat != known.beat:
                if known.beat and beat:
                    known.alive_s = now_s
                known.beat, known.change = beat, beat.partition(" ")[0]

    def due(self, now_s: float, most: int | None, first: Collection[str] = ()) -> list[str]:
        """Whose report is to be read now.

        Args:
            most: of those that changed; None: all, and those on whose hosts something moves.
            first: whose come before any other's.
        """
        changed = [name for name, known in self._known.items() if known.read != known.change]
        changed.sort(key=lambda name: (name not in first, self._known[name].read_s, name))
        old, silent, moving, rest = list[str](), list[str](), list[str](), list[str]()
        for name in sorted(self._known.keys() - set(changed), key=lambda name: (self._known[name].read_s, name)):
            known = self._known[name]
            if not known.beat:
                old.append(name)
            elif SUSPECT_S < now_s - known.alive_s < GONE_S:
                silent.append(name)
            elif known.report is not None and known.report.moving:
                moving.append(name)
            else:
                rest.append(name)
        if most is None:
            return changed + old + silent + moving + rest[:1]
        return changed[:most] + old + silent[:SILENT_AT_ONCE] + (moving + rest)[:1]

    def read(self, asked: Collection[str], reports: Iterable[NodeReport], now_s: float) -> None:
        """Reports have come back; one that was asked for and did not come is not there any more."""
        found = {report.id: report for report in reports}
        for name in asked:
            known = self._known.get(name)
            if known is None:
                continue
            known.read, known.read_s, known.report = known.change, now_s, found.get(name)
            if known.report is not None:
                known.alive_s = max(known.alive_s, now_s - known.report.last_seen_s)

    def nodes(self, now_s: float) -> list[NodeReport]:
        """Everybody that has a report, as it was last read, sorted by id; ``stale`` where it has changed since.

        One whose report was not read yet is there by its id alone.
        """
        found = []
        for name, known in sorted(self._known.items()):
            if known.read is None and known.beat:
                found.append(NodeReport(name, "replica", "", UNREAD, 0.0, stale=True))
            elif known.report is not None and now_s - known.alive_s < GONE_S:
                last_seen_s = max(0.0, now_s - known.alive_s)
                found.append(replace(known.report, last_seen_s=last_seen_s, stale=known.read != known.change))
        return found
