"""Requests as their senders saw them: how many, how they ended, how long they took, by model and over time. Pure.

What the models' cache did (hits, loads, evictions) the client counts; the two are put side by side in ``reports``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from modelsync.client.counting import PERCENTILES
from modelsync.client.latency import Histogram, difference, merged, percentile_s

BUCKET_S = 10
KEPT_BUCKETS = 8640
"""A day of them; one in which nothing happened takes no place."""
MAX_MODELS = 10_000
"""Names come from strangers: above this many, and for names that are not known, requests count as of no model."""
NO_MODEL = ""


@dataclass(slots=True)
class Bucket:
    """Ten seconds of one model."""

    t_s: int
    """Unix time at which it began."""
    requests: int = 0
    misses: int = 0
    """Requests that waited for a load."""
    failures: int = 0
    """Answers of 500 and above: not the sender's fault."""
    latency: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Visit:
    """One request, while it is answered; filled in as more is known."""

    model: str
    started_s: float
    status: int = 500
    version: int | None = None
    """That answers it; None while it is not known."""
    missed: bool = False
    """Whether it waited for a load."""


@dataclass(slots=True)
class VersionTraffic:
    """One version of one model, since the server began."""

    requests: int = 0
    misses: int = 0
    latency: Histogram = field(default_factory=Histogram)

    def percentiles_s(self) -> dict[str, float | None]:
        """By name, as the client tells its own."""
        counts = difference(self.latency.counts, [0] * len(self.latency.counts))
        return {name: percentile_s(counts, share) for name, share in PERCENTILES.items()}


@dataclass(slots=True)
class ModelTraffic:
    """One model, since the server began."""

    by_status: dict[int, int] = field(default_factory=dict)
    by_version: dict[int, VersionTraffic] = field(default_factory=dict)
    latency: Histogram = field(default_factory=Histogram)
    total_s: float = 0.0
    ring: deque[Bucket] = field(default_factory=lambda: deque(maxlen=KEPT_BUCKETS))
    _open: Bucket | None = None
    _before: list[int] = field(default_factory=lambda: list(Histogram().counts))

    def end(self, visit: Visit, took_s: float, t_s: int) -> None:
        bucket = self._open
        if bucket is None or bucket.t_s != t_s:
            self.close_bucket()
            bucket = self._open = Bucket(t_s)
        bucket.requests += 1
        bucket.misses += visit.missed
        bucket.failures += visit.status >= 500
        self.by_status[visit.status] = self.by_status.get(visit.status, 0) + 1
        if visit.version is not None:
            version = self.by_version.setdefault(visit.version, VersionTraffic())
            version.requests += 1
            version.misses += visit.missed
            version.latency.add(took_s)
        self.latency.add(took_s)
        self.total_s += took_s

    def close_bucket(self) -> None:
        if self._open is not None:
            self.ring.append(self._with_latency(self._open))
            self._before = list(self.latency.counts)
            self._open = None

    def buckets(self) -> list[Bucket]:
        return [*self.ring, *([self._with_latency(self._open)] if self._open is not None else [])]

    def _with_latency(self, bucket: Bucket) -> Bucket:
        return replace(bucket, latency=difference(self.latency.counts, self._before))


class Traffic:
    """All models.

    Args:
        now_s: Unix time in seconds.
        timer_s: a monotonic clock in seconds, for durations.
    """

    def __init__(self, now_s: Callable[[], float], timer_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._timer_s = timer_s
        self.models: dict[str, ModelTraffic] = {}

    def visit(self, name: str) -> Visit:
        """A request begins."""
        return Visit(name, self._timer_s())

    def end(self, visit: Visit) -> None:
        """It is answered, with ``visit.status``."""
        model = self.models.get(visit.model)
        if model is None:
            known = visit.status != 404 and len(self.models) < MAX_MODELS
            model = self.models.setdefault(visit.model if known else NO_MODEL, ModelTraffic())
        model.end(visit, self._timer_s() - visit.started_s, int(self._now_s()) // BUCKET_S * BUCKET_S)

    def series(self, name: str, step_s: int) -> dict[int, dict[str, Any]]:
        """A model's steps by their beginning: requests, hits, failures and latency percentiles in seconds."""
        model = self.models.get(name)
        joined: dict[int, list[Bucket]] = {}
        for bucket in model.buckets() if model is not None else ():
            joined.setdefault(bucket.t_s // step_s * step_s, []).append(bucket)
        return {t_s: _step(parts) for t_s, parts in sorted(joined.items())}


def _step(parts: list[Bucket]) -> dict[str, Any]:
    latency = merged(part.latency for part in parts)
    requests, misses = sum(part.requests for part in parts), sum(part.misses for part in parts)
    return {
        "requests": requests,
        "hits": requests - misses,
        "misses": misses,
        "failures": sum(part.failures for part in parts),
        "latency_p50_s": percentile_s(latency, 0.5),
        "latency_p90_s": percentile_s(latency, 0.9),
        "latency_p99_s": percentile_s(latency, 0.99),
    }
