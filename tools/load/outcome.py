"""What a run found, in numbers and as panels of curves."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from drive import Question, Sample
from plan import HOURS, Plan
from record import Record
from world import Swap

from modelsync.core import curves
from modelsync.core.curves import Bars, Heat, Lines, Panel

SHOWN_MODELS = 16


@dataclass
class Outcome:
    """One run. ``began`` is unix seconds; without a world of its own there are no swaps, events and expectations."""

    plan: Plan
    questions: Sequence[Question]
    record: Record
    samples: Sequence[Sample]
    worst_lag_s: float
    stats: dict[str, Any]
    began: float = 0.0
    swaps: Sequence[Swap] = ()
    events: Sequence[tuple[float, str]] = ()
    expected: dict[tuple[int, int], float] = field(default_factory=dict)

    @cached_property
    def wrong(self) -> int:
        return self.record.wrong(self.expected) if self.expected else 0

    @property
    def good(self) -> bool:
        return self.record.due > 0 and not self.record.failed and not self.wrong

    @property
    def done_swaps(self) -> list[Swap]:
        return [swap for swap in self.swaps if swap.version is not None]

    @property
    def marks(self) -> list[tuple[float, str]]:
        return [(at - self.began, word) for at, word in self.events if at - self.began <= self.plan.seconds]

    @property
    def resumed_s(self) -> float | None:
        """From the primary's death to the next publish that succeeded."""
        killed = next((at for at, word in self.events if word.endswith("killed")), None)
        after = [swap.at for swap in self.done_swaps if killed is not None and swap.at - swap.took_s > killed]
        return min(after) - killed if after and killed is not None else None

    @property
    def promoted_s(self) -> float | None:
        moments = {word.rpartition(" ")[2]: at for at, word in self.events}
        return moments["primary"] - moments["killed"] if {"primary", "killed"} <= moments.keys() else None

    def hit_rate(self) -> float | None:
        if len(self.samples) < 2:
            return None
        first, last = self.samples[0], self.samples[-1]
        requests = last.requests - first.requests
        return (last.hits - first.hits) / requests if requests else None

    # --- curves -------------------------------------------------------------------------------------------------------

    def panels(self) -> list[Panel]:
        """For the report, in its order."""
        drawn: list[Panel] = [
            Lines(
                "Requests due and failed", "a second",
                {"due": self.record.counts("due"), "failed": self.record.counts("failed")}, marks=self.marks,
            ),
            Lines(
                "Latency from the moment a request was due", "ms",
                {name: self.record.curve_ms(name) for name in ("p50", "p90", "p99", "max")},
                logarithmic=True, marks=self.marks,
            ),
            Lines("Hit rate", "%", {"hits": self._rate()}, marks=self.marks),
            Lines(
                "Loads, evictions and swaps", "a second",
                {**{what: self._per_second(what) for what in ("loads", "evictions")}, "swaps": self._swaps()},
                marks=self.marks,
            ),
            Lines("Time of a load", "ms", {"mean": self._load_times()}, marks=self.marks),
            Lines("Time of a publish", "ms", {"publish": self._publishes()}, marks=self.marks),
            *self._cold_starts(),
            self._heat(),
        ]  # fmt: skip
        return [panel for panel in drawn if not isinstance(panel, Lines) or any(panel.lines.values())]

    def _pairs(self) -> list[tuple[Sample, Sample]]:
        return [(a, b) for a, b in itertools.pairwise(self.samples) if b.at_s > a.at_s]

    def _rate(self) -> list[tuple[float, float]]:
        return [
            (after.at_s, 100 * (after.hits - before.hits) / (after.requests - before.requests))
            for before, after in self._pairs()
            if after.requests > before.requests
        ]

    def _per_second(self, what: str) -> list[tuple[float, float]]:
        return [
            (after.at_s, (getattr(after, what) - getattr(before, what)) / (after.at_s - before.at_s))
            for before, after in self._pairs()
        ]

    def _load_times(self) -> list[tuple[float, float]]:
        return [
            (after.at_s, 1000 * (after.load_s - before.load_s) / (after.loads - before.loads))
            for before, after in self._pairs()
            if after.loads > before.loads
        ]

    def _swaps(self) -> list[tuple[float, float]]:
        if not self.swaps:
            return []
        seconds = [int(swap.at - self.began) for swap in self.done_swaps]
        return [(float(second), float(seconds.count(second))) for second in range(int(self.plan.seconds))]

    def _publishes(self) -> list[tuple[float, float]]:
        return [(swap.at - self.began, 1000 * swap.took_s) for swap in self.done_swaps]

    def _cold_starts(self) -> list[Panel]:
        if not self.stats:
            return []
        stats = {"models": self.stats["models"], "timeseries": {}}
        return [panel for panel in curves.panels(curves.parse(stats)) if isinstance(panel, Bars)]

    def _heat(self) -> Heat:
        asked = self.record.asked
        totals = {number: sum(asked[hour, number] for hour in range(HOURS)) for number in range(len(self.questions))}
        shown = sorted(totals, key=lambda number: -totals[number])[:SHOWN_MODELS]
        return Heat(
            "Hot models by hour of the (compressed) day",
            "requests",
            [self.questions[number].name for number in shown],
            [str(hour) for hour in range(HOURS)],
            [[float(asked[hour, number]) for hour in range(HOURS)] for number in shown],
            x_label="hour",
        )

    def hottest(self, hour: int, most: int = 3) -> list[tuple[str, int]]:
        """The models asked for most in an hour."""
        counts = [(self.record.asked[hour, number], question.name) for number, question in enumerate(self.questions)]
        return [(name, count) for count, name in sorted(counts, key=lambda pair: (-pair[0], pair[1]))[:most] if count]
