"""A histogram of durations: 5 % wide steps from a microsecond to a quarter of an hour. Pure.

Counts are plain integer adds on a list, which the interpreter does not interrupt; so no lock is needed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

BOUNDS_S: tuple[float, ...] = tuple(1e-6 * 1.1**step for step in range(218))
"""The upper end of each step; a value is told as the end of its step, so at most 10 % above what it was."""


class Histogram:
    """Durations in seconds."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)

    def add(self, duration_s: float, weight: int = 1) -> None:
        """Count one duration; ``weight`` is how many requests it stands for."""
        self.counts[bisect_left(BOUNDS_S, duration_s)] += weight


def difference(counts: Sequence[int], before: Sequence[int]) -> dict[int, int]:
    """What was counted since: step to count, steps without any left out."""
    return {step: now - then for step, (now, then) in enumerate(zip(counts, before, strict=True)) if now != then}


def merged(parts: Iterable[dict[int, int]]) -> dict[int, int]:
    """Several such differences as one."""
    total: dict[int, int] = {}
    for part in parts:
        for step, count in part.items():
            total[step] = total.get(step, 0) + count
    return total


def percentile_s(counts: dict[int, int], share: float) -> float | None:
    """The duration that at least this share does not exceed; None when nothing was counted."""
    total = sum(counts.values())
    if not total:
        return None
    wanted, seen = share * total, 0
    for step in sorted(counts):
        seen += counts[step]
        if seen >= wanted:
            return BOUNDS_S[min(step, len(BOUNDS_S) - 1)]
    return BOUNDS_S[-1]
