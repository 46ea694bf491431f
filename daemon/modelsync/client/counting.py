"""What is counted of each model and version.

The hit path adds one to an integer (`hit`) and does nothing more; what stands here is updated by misses, loads and the
client's one thread, and reads that integer when it is asked. All of it is guarded by the client's lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelsync.client.buckets import KEPT_BUCKETS, Bucket
from modelsync.client.latency import Histogram, difference, merged, percentile_s

if TYPE_CHECKING:
    from modelsync.client.entry import Entry


@dataclass(slots=True)
class LoadTimes:
    """Where the seconds of loads went."""

    read_s: float = 0.0
    """Finding the version, opening and reading its files, as far as its library lets that be told apart."""
    verify_s: float = 0.0
    deserialise_s: float = 0.0
    """The loader's work less what it spent in reading."""
    warm_up_s: float = 0.0

    @property
    def total_s(self) -> float:
        return self.read_s + self.verify_s + self.deserialise_s + self.warm_up_s

    def add(self, other: LoadTimes) -> None:
        self.read_s += other.read_s
        self.verify_s += other.verify_s
        self.deserialise_s += other.deserialise_s
        self.warm_up_s += other.warm_up_s

    def to_json(self) -> dict[str, float]:
        return {
            "read_s": self.read_s,
            "verify_s": self.verify_s,
            "deserialise_s": self.deserialise_s,
            "warm_up_s": self.warm_up_s,
            "total_s": self.total_s,
        }


@dataclass(slots=True)
class VersionCounts:
    """One version of one model, as long as the client lives."""

    version: int
    digest: str = ""
    loader: str = ""
    maps: bool = False
    size_bytes: int = 0
    """In memory now; 0 when it is not."""
    misses: int = 0
    """Requests that had to wait for a load of this version."""
    loads: int = 0
    evictions: int = 0
    swapped_out: int = 0
    age_at_eviction_s: float = 0.0
    """Of the last one; the sum is kept beside it for the mean."""
    age_at_eviction_sum_s: float = 0.0
    times: LoadTimes = field(default_factory=LoadTimes)
    last: LoadTimes = field(default_factory=LoadTimes)
    latency: Histogram = field(default_factory=Histogram)
    ended_requests: int = 0
    """All but those that entries which answer now have counted."""
    answering: set[Entry] = field(default_factory=set)

    @property
    def requests(self) -> int:
        return self.ended_requests + sum(entry.requests for entry in self.answering)

    @property
    def hits(self) -> int:
        return max(0, self.requests - self.misses)

    def evicted(self, age_s: float) -> None:
        """Count an eviction after so long in memory."""
        self.evictions += 1
        self.age_at_eviction_s = age_s
        self.age_at_eviction_sum_s += age_s

    def loaded(self, times: LoadTimes, loader: str, maps: bool, size_bytes: int) -> None:
        """Count a load."""
        self.loads += 1
        self.last = times
        self.times.add(times)
        self.loader, self.maps, self.size_bytes = loader, maps, size_bytes

    def to_json(self) -> dict[str, Any]:
        counts = difference(self.latency.counts, [0] * len(self.latency.counts))
        mean_age_s = self.age_at_eviction_sum_s / self.evictions if self.evictions else None
        return {
            "digest": self.digest,
            "loader": self.loader,
            "maps": self.maps,
            "size_bytes": self.size_bytes,
            "requests": self.requests,
            "hits": self.hits,
            "misses": self.misses,
            "loads": self.loads,
            "evictions": self.evictions,
            "swapped_out": self.swapped_out,
            "age_at_eviction_s": {"last": self.age_at_eviction_s if self.evictions else None, "mean": mean_age_s},
            "load": self.times.to_json(),
            "last_load": self.last.to_json(),
            "latency_s": {name: percentile_s(counts, share) for name, share in PERCENTILES.items()},
        }


PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


@dataclass(frozen=True, slots=True)
class _Totals:
    requests: int = 0
    misses: int = 0
    loads: int = 0
    load_s: float = 0.0
    coalesced: int = 0
    evictions: int = 0
    failures: int = 0


class ModelCounts:
    """One model: its versions, and what happened over time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.versions: dict[int, VersionCounts] = {}
        self.coalesced = 0
        """Requests that waited for a load that another had begun."""
        self.failures = 0
        self.swaps = 0
        self._ring: deque[Bucket] = deque(maxlen=KEPT_BUCKETS)
        self._before = _Totals()
        self._latency_before: dict[int, list[int]] = {}

    def of(self, version: int) -> VersionCounts:
        if version not in self.versions:
            self.versions[version] = VersionCounts(version)
        return self.versions[version]

    def close_bucket(self, t_s: int) -> None:
        """Keep what happened since the last call as the bucket that began at ``t_s``."""
        bucket = self._open_bucket(t_s)
        self._before = self._totals()
        self._latency_before = {number: list(each.latency.counts) for number, each in self._versions()}
        if bucket.happened:
            self._ring.append(bucket)

    def buckets(self, open_t_s: int) -> list[Bucket]:
        """All that are kept, and the one that is being filled."""
        now = self._open_bucket(open_t_s)
        return [*self._ring, *([now] if now.happened else [])]

    def _versions(self) -> Iterator[tuple[int, VersionCounts]]:
        yield from list(self.versions.items())

    def _totals(self) -> _Totals:
        versions = [each for _, each in self._versions()]
        return _Totals(
            requests=sum(each.requests for each in versions),
            misses=sum(each.misses for each in versions),
            loads=sum(each.loads for each in versions),
            load_s=sum(each.times.total_s for each in versions),
            coalesced=self.coalesced,
            evictions=sum(each.evictions for each in versions),
            failures=self.failures,
        )

    def _open_bucket(self, t_s: int) -> Bucket:
        now, before = self._totals(), self._before
        blank = [0] * len(Histogram().counts)
        latency = merged(
            difference(each.latency.counts, self._latency_before.get(number, blank))
            for number, each in self._versions()
        )
        return Bucket(
            t_s=t_s,
            requests=max(0, now.requests - before.requests),
            misses=now.misses - before.misses,
            loads=now.loads - before.loads,
            load_s=now.load_s - before.load_s,
            coalesced=now.coalesced - before.coalesced,
            evictions=now.evictions - before.evictions,
            failures=now.failures - before.failures,
            latency=latency,
        )
