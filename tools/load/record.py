"""What became of each request: latencies from the moment it was due, by hdrhistogram; every failure by its reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hdrh.histogram import HdrHistogram

_LONGEST_US = 120_000_000
_DIGITS = 3
SHARES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}


def _histogram(digits: int) -> Any:
    return HdrHistogram(1, _LONGEST_US, digits)


@dataclass
class Second:
    """One second of the run, by when requests were due."""

    due: int = 0
    failed: int = 0
    latency: Any = field(default_factory=lambda: _histogram(2))


@dataclass
class Record:
    """All requests of a run."""

    latency: Any = field(default_factory=lambda: _histogram(_DIGITS))
    seconds: dict[int, Second] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    first_failures: list[str] = field(default_factory=list)
    asked: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(hour, model) to requests."""
    answers: Counter[tuple[int, int, float]] = field(default_factory=Counter)
    """(model, version, value) to how often it was answered: compared with what was published, at the end."""

    @property
    def due(self) -> int:
        return sum(second.due for second in self.seconds.values())

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    def ask(self, at_s: float, hour: int, model: int) -> None:
        """A request is due."""
        self._second(at_s).due += 1
        self.asked[hour, model] += 1

    def answered(self, at_s: float, latency_s: float, model: int, version: int, value: float) -> None:
        """It was answered, so long after it was due."""
        micros = min(_LONGEST_US, max(1, round(latency_s * 1e6)))
        self.latency.record_value(micros)
        self._second(at_s).latency.record_value(micros)
        self.answers[model, version, value] += 1

    def fail(self, at_s: float, kind: str, detail: str) -> None:
        """It was not answered as it should have been."""
        self.failures[kind] += 1
        self._second(at_s).failed += 1
        if len(self.first_failures) < 10:
            self.first_failures.append(f"{at_s:.2f} s: {kind}: {detail}")

    def percentiles_ms(self) -> dict[str, float]:
        """Over the whole run."""
        return {name: self.latency.get_value_at_percentile(share) / 1000 for name, share in SHARES.items()}

    def curve_ms(self, share: str) -> list[tuple[float, float]]:
        """A percentile second by second, where there was an answer."""
        return [
            (float(number), second.latency.get_value_at_percentile(SHARES[share]) / 1000)
            for number, second in sorted(self.seconds.items())
            if second.latency.get_total_count()
        ]

    def counts(self, what: str) -> list[tuple[float, float]]:
        return [(float(number), float(getattr(second, what))) for number, second in sorted(self.seconds.items())]

    def wrong(self, expected: dict[tuple[int, int], float]) -> int:
        """Answers that the version they name does not give: mixed, torn or of something that was never published."""
        return sum(
            times for (model, version, value), times in self.answers.items() if expected.get((model, version)) != value
        )

    def _second(self, at_s: float) -> Second:
        return self.seconds.setdefault(int(at_s), Second())
