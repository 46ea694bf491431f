"""What happened to a model within ten seconds, and many of these as a series. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modelsync.client.latency import merged, percentile_s

BUCKET_S = 10
KEPT_BUCKETS = 8640
"""A day of them; buckets in which nothing happened are not kept."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """What happened to one model within 10 s."""

    t_s: int
    """Unix time of its beginning."""
    requests: int
    misses: int
    loads: int
    load_s: float
    coalesced: int
    evictions: int
    failures: int
    latency: dict[int, int]

    @property
    def happened(self) -> bool:
        return bool(self.requests or self.loads or self.evictions or self.failures or self.coalesced)


def series(buckets: list[Bucket], step_s: int) -> list[dict[str, Any]]:
    """Buckets as JSON, joined into steps. ``step_s`` is a multiple of 10. Steps without any request are left out."""
    joined: dict[int, list[Bucket]] = {}
    for bucket in buckets:
        joined.setdefault(bucket.t_s // step_s * step_s, []).append(bucket)
    return [_step(t_s, parts) for t_s, parts in sorted(joined.items())]


def _step(t_s: int, parts: list[Bucket]) -> dict[str, Any]:
    latency = merged(part.latency for part in parts)
    requests, misses = sum(part.requests for part in parts), sum(part.misses for part in parts)
    return {
        "t_s": t_s,
        "requests": requests,
        "hits": max(0, requests - misses),
        "misses": misses,
        "coalesced": sum(part.coalesced for part in parts),
        "loads": sum(part.loads for part in parts),
        "load_s": sum(part.load_s for part in parts),
        "evictions": sum(part.evictions for part in parts),
        "failures": sum(part.failures for part in parts),
        "latency_p50_s": percentile_s(latency, 0.5),
        "latency_p90_s": percentile_s(latency, 0.9),
        "latency_p99_s": percentile_s(latency, 0.99),
    }
