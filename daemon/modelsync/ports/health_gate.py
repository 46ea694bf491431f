"""What a rollout asks about a version's health."""

from __future__ import annotations

from typing import Protocol

from modelsync.core.rollout.record import Gate


class HealthGate(Protocol):
    """A monitoring system. Raises RemoteFault, IntegrityFault where it gives no usable answer."""

    async def worst(self, gate: Gate) -> float | None:
        """The largest value of the gate's query; None where it has no data."""
