"""The node's own time."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """The node's own time. Wall time is for people only and never decides anything."""

    def boottime_s(self) -> float:
        """CLOCK_BOOTTIME: it goes on while the machine is suspended."""

    def wall_ms(self) -> int:
        """Unix milliseconds, to be shown."""
