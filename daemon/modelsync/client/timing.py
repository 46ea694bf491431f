"""How long requests take: each one of a model that is asked seldom, a burst now and then of one that is asked often."""

from __future__ import annotations

import time
import weakref
from typing import Any

from modelsync.client.entry import Entry
from modelsync.client.hit import HitPath

_ALWAYS_TIMED_S = 0.002
"""Requests of one model further apart than this are all timed; above 500 a second, a burst now and then."""
_BURST = 8
"""Requests timed one after another before timing pauses until the client's thread arms it again."""


class Timer:
    """Times requests of an entry while it is armed, by standing in the place of what is called.

    A model that is asked seldom has every request timed. One that is asked often disarms its timer after a few, so that
    its requests pay nothing, and the client's thread arms it again; each of them then stands for those between.
    """

    __slots__ = ("_burst", "_counts", "_direct", "_entry", "_last_s", "_path", "_paused_at", "_weight", "paused")

    def __init__(self, entry: Entry, path: HitPath) -> None:
        assert entry.counts is not None
        self._entry = weakref.ref(entry)
        self._path = path
        self._direct = entry.direct
        self._counts = entry.counts
        self._paused_at = path.count()
        self._last_s = 0.0
        self._weight, self._burst = 1, _BURST
        self.paused = True
        """Whether it is disarmed, so that requests go by untimed."""

    def arm(self) -> None:
        """Have the next requests timed."""
        entry = self._entry()
        if entry is not None:
            self._weight = 1 + (self._path.count() - self._paused_at) // _BURST
            self._burst = _BURST
            self.paused = False
            self._path.divert(entry, self._timed)

    def _timed(self, X: Any) -> Any:
        started_s = time.perf_counter()
        try:
            return self._direct(X)
        finally:
            self._counts.latency.add(time.perf_counter() - started_s, self._weight)
            seldom = started_s - self._last_s > _ALWAYS_TIMED_S
            self._last_s = started_s
            self._burst = _BURST if seldom else self._burst - 1
            if seldom:
                self._weight = 1
            if self._burst <= 0:
                self._disarm()

    def _disarm(self) -> None:
        entry = self._entry()
        if entry is not None and not self.paused:
            self._paused_at = self._path.count()
            self._path.divert(entry, self._direct)
            self.paused = True
