"""What is counted of all models of one client, and the ten seconds that are being counted now."""

from __future__ import annotations

import threading
from typing import Any

from modelsync.client.buckets import BUCKET_S, series
from modelsync.client.counting import ModelCounts


class Ledger:
    """The counts of one client, guarded by its lock."""

    def __init__(self, lock: threading.Condition, now_s: float) -> None:
        self._lock = lock
        self._models: dict[str, ModelCounts] = {}
        self._bucket_t_s = _bucket_start(now_s)

    def of(self, name: str) -> ModelCounts:
        """The counts of one model, from when it was first asked for."""
        with self._lock:
            return self._models.setdefault(name, ModelCounts(name))

    def tick(self, now_s: float) -> float:
        """Close the bucket when its time is over; returns when the next one ends, in seconds."""
        if now_s >= self._bucket_t_s + BUCKET_S:
            with self._lock:
                for counts in self._models.values():
                    counts.close_bucket(self._bucket_t_s)
                self._bucket_t_s = _bucket_start(now_s)
        return self._bucket_t_s + BUCKET_S - now_s

    def to_json(self) -> dict[str, dict[str, Any]]:
        """By model and version."""
        with self._lock:
            return {
                name: {str(number): each.to_json() for number, each in sorted(counts.versions.items())}
                for name, counts in self._models.items()
            }

    def series(self, name: str, step_s: int) -> list[dict[str, Any]]:
        """What happened to a model over the last day. Raises ValueError: the step is not a multiple of BUCKET_S."""
        if step_s < BUCKET_S or step_s % BUCKET_S:
            raise ValueError(f"step_s is a multiple of {BUCKET_S}")
        with self._lock:
            counts = self._models.get(name)
            return series(counts.buckets(self._bucket_t_s), step_s) if counts is not None else []

    def names(self) -> list[str]:
        with self._lock:
            return list(self._models)


def _bucket_start(now_s: float) -> int:
    return int(now_s) // BUCKET_S * BUCKET_S
