"""Peers that gave wrong bytes: for how long they are left out, and of which name to tell. Pure; time is handed in.

One flipped bit may be a network card's and not the peer's, and a fleet must not starve by it: a suspect is asked again
when nobody else is there, and is trusted again after a while. Every byte of it is verified all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

QUARANTINE_S = 600.0
"""Long enough that a peer with a bad disk or card is seen in the status, short enough to come back by itself."""
MAX_SUSPECTS = 1000


class Suspects:
    """Whom this node does not trust just now. Each method is one step: threads may share it.

    Args:
        accused: told of each peer that enters quarantine, from whichever thread noticed.
    """

    def __init__(self, accused: Callable[[str], None] = lambda peer: None) -> None:
        self.accused = accused
        self._until_s: dict[str, float] = {}

    def accuse(self, peer: str, now_s: float) -> None:
        """It gave bytes that are not what their digest says."""
        if len(self._until_s) >= MAX_SUSPECTS:
            self._until_s = {name: until_s for name, until_s in self._until_s.items() if until_s > now_s}
        known = self._until_s.get(peer, 0.0) > now_s
        self._until_s[peer] = now_s + QUARANTINE_S
        if not known:
            self.accused(peer)

    def names(self, now_s: float) -> list[str]:
        """Who is in quarantine."""
        return sorted(name for name, until_s in list(self._until_s.items()) if until_s > now_s)

    def without(self, peers: Collection[str], now_s: float) -> list[str]:
        """Those that are trusted; all of them where none is."""
        trusted = [name for name in peers if self._until_s.get(name, 0.0) <= now_s]
        return trusted or list(peers)
