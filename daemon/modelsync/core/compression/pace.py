"""How fast something has gone lately. Pure; time is handed in."""

from __future__ import annotations

from dataclasses import dataclass

LATELY_S = 10.0
"""What was measured longer ago says nothing of how busy a processor is now."""
_WEIGHT = 0.2
"""Of the newest measurement: one thread that was held up does not count for much."""


@dataclass(slots=True)
class Pace:
    """A figure that is measured over and over, smoothed, and forgotten when it is old. ``usual``: where it begins."""

    usual: float
    _value: float = 0.0
    _at_s: float = float("-inf")

    def note(self, value: float, now_s: float) -> None:
        """One more measurement."""
        before = self.lately(now_s)
        self._value, self._at_s = before + _WEIGHT * (value - before), now_s

    def lately(self, now_s: float) -> float:
        """The figure, while it is fresh; else what is usual."""
        return self._value if now_s - self._at_s < LATELY_S else self.usual
