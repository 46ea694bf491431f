"""What moves on this host just now: pulls, uploads, a scrub; how much of it is done, how fast, how much longer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from modelsync.core import pace
from modelsync.core.pace import Pace
from modelsync.ports import Clock, Progress

Counts = Callable[[], Mapping[str, Progress]]
"""Progress by model."""


class UnderWay:
    """Looks whenever it is asked; the rate is of the looks, see ``core.pace``.

    Args:
        pulls, uploads: what there is of each, by model.
    """

    def __init__(self, *, pulls: Counts, uploads: Counts, clock: Clock) -> None:
        self._counts: dict[str, Counts] = {"transfers": pulls, "uploads": uploads, "scrub": self._scrubs}
        self._clock = clock
        self._paces: dict[tuple[str, str], Pace] = {}
        self.scrub: Progress | None = None
        """Of the scrub that runs."""

    def _scrubs(self) -> Mapping[str, Progress]:
        return {"": self.scrub} if self.scrub is not None else {}

    def lines(self) -> dict[str, dict[str, Any]]:
        """``transfers`` and ``uploads``: a line by model; ``scrub``: one line, or empty."""
        now_s, paces = self._clock.boottime_s(), dict[tuple[str, str], Pace]()
        found: dict[str, dict[str, Any]] = {}
        for kind, counts in self._counts.items():
            found[kind] = {}
            for name, count in counts().items():
                key = (kind, str(name))
                paces[key] = pace.seen(self._paces.get(key), count.done_bytes, count.total_bytes, now_s)
                found[kind][str(name)] = paces[key].line()
        self._paces = paces
        return {**found, "scrub": found["scrub"].get("", {})}
