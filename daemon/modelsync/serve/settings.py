"""What one inference server is told: where the models lie, whom to trust, and how much strangers may use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True, slots=True)
class Batching:
    """When requests for one model are run together. ``rows`` 0: never."""

    rows: int = 0
    delay_s: float = 0.002


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Sizes in bytes, times in seconds."""

    live_dir: Path
    host: str = "127.0.0.1"
    port: int = 8462
    budget_bytes: int | None = None
    """For resident models; None: as many as are asked for."""
    trust_pickle: frozenset[str] | Literal["all"] = frozenset()
    preload: tuple[str, ...] = ()
    """Patterns over names of models that are loaded before the server is ready."""
    threads: int = 4
    """That infer, for all models together; one model may use half of them."""
    queue: int = 512
    """Requests that may wait for a thread, for all models together; one model's may be half of them."""
    max_body_bytes: int = 64 << 20
    workers: int = 1
    """Processes that answer on the port; threads, queue, bodies and budget are each one's own."""
    drain_s: float = 20.0
    """For running requests when the server stops."""
    batching: Batching = Batching()
    model_batching: Mapping[str, Batching] = field(default_factory=lambda: MappingProxyType({}))
    daemon_url: str | None = None
    """Which daemon knows the owners of models that are not held here (partitioned mode); None: nothing is forwarded."""

    def batching_of(self, model: str) -> Batching:
        return self.model_batching.get(model, self.batching)

    @property
    def max_bodies_bytes(self) -> int:
        """Of request bodies in memory at once: four of the largest, however many connections there are."""
        return 4 * self.max_body_bytes
