"""One node's share of a link: a bucket that all its pulls draw from."""

from __future__ import annotations

import threading
import time


class RateLimiter:
    """A bucket that all pulls of a node share; the rate may change while they run. 0 means no limit."""

    def __init__(self, rate_bytes_per_s: int = 0) -> None:
        self.rate_bytes_per_s = rate_bytes_per_s
        self._guard = threading.Lock()
        self._free_at_s = 0.0

    def take(self, size_bytes: int, cancelled: threading.Event) -> None:
        """Wait until these bytes may be counted, or the pull is cancelled."""
        rate = self.rate_bytes_per_s
        if not rate:
            return
        with self._guard:
            now = time.monotonic()
            start = max(now, self._free_at_s)
            self._free_at_s = start + size_bytes / rate
        cancelled.wait(start - now)
