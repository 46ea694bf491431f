"""How fast something goes on and when it will be done, from what is seen of it now and then.

An exponentially weighted mean over the time that passed, so that looks may come as they please: a look a second and a
look each five seconds tell the same. Nothing is said before half a second, nor of the end of what stands still.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

WINDOW_S = 5.0
"""What happened this long ago counts a third: a rate that follows a change, and does not jump with every chunk."""
FIRST_S = 0.5
"""A burst into a socket's buffer is no rate."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What is known of one thing under way. ``begun_s``: when it was first looked at."""

    begun_s: float
    seen_s: float
    done_bytes: int
    total_bytes: int
    _mean: float = 0.0
    _weight: float = 0.0

    @property
    def rate_bytes_per_s(self) -> float | None:
        """None before there is anything to say."""
        if self.seen_s - self.begun_s < FIRST_S or self._weight <= 0.0:
            return None
        return self._mean / self._weight

    @property
    def left_s(self) -> float | None:
        """Seconds until the end at this rate; None where nothing is known, or nothing moves."""
        rate = self.rate_bytes_per_s
        left_bytes = max(0, self.total_bytes - self.done_bytes)
        if not left_bytes:
            return 0.0
        return left_bytes / rate if rate and rate >= 1.0 else None

    def line(self) -> dict[str, float | int | None]:
        """As reports and documents have it."""
        rate, left_s = self.rate_bytes_per_s, self.left_s
        return {
            "done_bytes": self.done_bytes,
            "total_bytes": self.total_bytes,
            "rate_bytes_per_s": None if rate is None else round(rate),
            "left_s": None if left_s is None else round(left_s, 1),
        }


def begun(done_bytes: int, total_bytes: int, now_s: float) -> Pace:
    """The first look; what is there already was not done at any rate that we know."""
    return Pace(now_s, now_s, done_bytes, total_bytes)


def seen(pace: Pace | None, done_bytes: int, total_bytes: int, now_s: float) -> Pace:
    """A further look. Another total, or less done than before, is another thing, or one that began anew.

    Args:
        now_s: of any clock that does not go back; a look in the same instant only counts the bytes.
    """
    if pace is None or pace.total_bytes != total_bytes or done_bytes < pace.done_bytes:
        return begun(done_bytes, total_bytes, now_s)
    passed_s = now_s - pace.seen_s
    if passed_s <= 0.0:
        return pace
    keep = math.exp(-passed_s / WINDOW_S)
    rate = (done_bytes - pace.done_bytes) / passed_s
    return replace(
        pace,
        seen_s=now_s,
        done_bytes=done_bytes,
        _mean=pace._mean * keep + rate * (1.0 - keep),
        _weight=pace._weight * keep + (1.0 - keep),
    )
