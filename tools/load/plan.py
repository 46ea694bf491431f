"""Who asks for what, and when: arrivals fixed ahead of time, so that a slow answer delays no later question.

Pure. A day is as long as the run: the rate follows the hour, and so does each model's popularity, since what people ask
in the morning is not what they ask at night.
"""

from __future__ import annotations

import bisect
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

HOURS = 24
BUSIEST_HOUR = 14.0
DAILY_SWING = 0.5
"""The rate at night is this much below its mean, and as much above it at the busiest hour."""
MODEL_SWING = 0.9
"""Of each model around its own best hour: at the opposite hour it is asked for a nineteenth as often."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request, at so many seconds from the start."""

    at_s: float
    model: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A run.

    Args:
        seconds: how long it is, which is also its day. rate: requests a second, on average.
        models: how many; the first is the most popular. skew: Zipf's exponent.
    """

    seconds: float
    rate: float
    models: int
    skew: float
    seed: int

    def hour(self, at_s: float) -> float:
        """The hour of the compressed day."""
        return HOURS * at_s / self.seconds

    def rate_at(self, at_s: float) -> float:
        return self.rate * (1 + DAILY_SWING * _swing(self.hour(at_s), BUSIEST_HOUR))

    def weights(self, hour: int) -> list[float]:
        """How popular each model is in an hour."""
        best = best_hours(self.models, self.seed)
        return [
            (1 + MODEL_SWING * _swing(hour + 0.5, best[model])) / (model + 1) ** self.skew
            for model in range(self.models)
        ]

    def arrivals(self) -> Iterator[Arrival]:
        """A Poisson process of that rate (by thinning), each arrival with a model of its hour's popularity."""
        dice = random.Random(self.seed)
        most = self.rate * (1 + DAILY_SWING)
        tables = [_cumulative(self.weights(hour)) for hour in range(HOURS)]
        at_s = 0.0
        while (at_s := at_s + dice.expovariate(most)) < self.seconds:
            if dice.random() * most <= self.rate_at(at_s):
                yield Arrival(at_s, _drawn(tables[int(self.hour(at_s))], dice.random()))


def best_hours(models: int, seed: int) -> list[float]:
    """The hour at which each model is asked for most."""
    dice = random.Random(f"hours {seed}")
    return [dice.uniform(0, HOURS) for _ in range(models)]


def zipf(models: int, skew: float) -> list[float]:
    """Popularity without hours: for who is swapped."""
    return [1 / (model + 1) ** skew for model in range(models)]


def _swing(hour: float, best: float) -> float:
    return math.cos(2 * math.pi * (hour - best) / HOURS)


def _cumulative(weights: Sequence[float]) -> list[float]:
    total = sum(weights)
    return list(itertools.accumulate(weight / total for weight in weights))


def _drawn(table: Sequence[float], share: float) -> int:
    return min(bisect.bisect_right(table, share), len(table) - 1)
