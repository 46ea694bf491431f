"""What a correct fleet never shows, kept for status, metrics and listeners: each is worth a person's look.

An alarm is raised where it is seen and changes nothing by itself: the refusal that goes with it has already happened.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping

import structlog

log = structlog.get_logger()

KEPT = 100
"""Distinct alarms remembered; one that comes again is counted, not told again."""

KINDS: Mapping[str, str] = {
    "epoch.two_holders": "one epoch was granted to two nodes: Redis lost data while they were elected",
    "lease.refused": "Redis shows a lease below or beside the accepted one: nothing of it is applied",
    "peer.lied": "a peer sent bytes that are not what their digest says: its disk, its memory or the network is bad",
    "node.twin": "another process reports under this node's id: two hosts were given one node.id",
    "version.runs_untrusted": "what runs has no signature that is trusted here: it goes on, and is not run again later",
    "version.untrusted": "a version without a signature that is trusted here is refused: what runs stays",
    "version.two_digests": "one version number names two contents: this node's own is kept as orphaned, or refused",
    "write.refused": "a write by a primary that had been replaced was refused",
}
"""What each means, as status says it."""


class Alarms:
    """One node's alarms. ``told`` hears of each new one, to announce it."""

    def __init__(self, told: Callable[[str, str], None] = lambda kind, what: None) -> None:
        self.told = told
        self.counts: Counter[str] = Counter()
        self._latest: deque[tuple[str, str]] = deque(maxlen=KEPT)

    def raised(self, kind: str, what: str) -> None:
        """``kind`` is one of KINDS; ``what`` names who and which, without times, so that it is recognised."""
        self.counts[kind] += 1
        if (kind, what) in self._latest:
            return
        self._latest.append((kind, what))
        log.error(kind, what=what, next=KINDS[kind])
        self.told(kind, what)

    def sentences(self, count: int) -> list[str]:
        """The last few, oldest first."""
        return [f"{kind}: {what}: {KINDS[kind]}" for kind, what in list(self._latest)[-count:]]
