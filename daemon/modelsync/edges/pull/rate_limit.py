"""One node's share of a link: a bucket that all its pulls draw from."""

from __future__ import annotations

import threading
import time

_LOOK_S = 0.25
"""A change of the rate, also from next to nothing, is noticed within this."""


class RateLimiter:
    """A bucket that all pulls of a node share; the rate may change while they run. 0 means no limit."""

    def __init__(self, rate_bytes_per_s: int = 0) -> None:
        self.rate_bytes_per_s = rate_bytes_per_s
        self._guard = threading.Lock()
        self._asked = 0
        """Bytes that were asked for since the start; each asker's turn is where this stood when it came."""
        self._passed = 0.0
        """How many of them the rate has let through by ``_at_s``."""
        self._at_s = time.monotonic()

    def take(self, size_bytes: int, cancelled: threading.Event) -> None:
        """Wait until these bytes may be counted, or the pull is cancelled."""
        if not self.rate_bytes_per_s:
            return
        with self._guard:
            self._advance()
            turn = self._asked
            self._asked += size_bytes
        while (pause_s := self._pause_s(turn)) > 0 and not cancelled.wait(pause_s):
            pass

    def _pause_s(self, turn: int) -> float:
        with self._guard:
            self._advance()
            rate = self.rate_bytes_per_s
            return min(_LOOK_S, (turn - self._passed) / rate) if rate else 0.0

    def _advance(self) -> None:
        now_s, rate = time.monotonic(), self.rate_bytes_per_s
        passed = self._passed + rate * (now_s - self._at_s) if rate else self._asked
        self._passed, self._at_s = min(self._asked, passed), now_s
