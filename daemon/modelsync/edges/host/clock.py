"""The node's clocks. CLOCK_BOOTTIME decides; the wall clock is only shown."""

from __future__ import annotations

import time


class SystemClock:
    """The kernel's clocks."""

    def boottime_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000
