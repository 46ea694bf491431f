"""A request under way, and when it counts as one that will not come. Pure; time is handed in."""

from __future__ import annotations

from dataclasses import dataclass

from modelsync.core.swarm.messages import AskRun
from modelsync.core.swarm.peers import MIN_RATE_BYTES_PER_S

HEDGE_S = 2.0
"""A request that brought less than the least rate in this time stands still."""
_LATE_S = 1.0
"""What a second request for the same must save at least, to be worth its bytes."""


@dataclass(slots=True)
class OpenRun:
    """One request and how far it has come. ``pending``: its chunks that are not here yet, bit n being chunk n."""

    ask: AskRun
    pending: int
    since_s: float
    mark_s: float
    """When it was last looked at whether it moves, and how many bytes had come then."""
    mark_bytes: int = 0
    size_bytes: int = 0
    delivered_bytes: int = 0
    """In chunks that are whole and right."""
    overtaken: bool = False
    abandoned: bool = False


def is_due(run: OpenRun, now_s: float) -> bool:
    """Whether it is time to look at whether a request moves."""
    return now_s - run.mark_s >= HEDGE_S


def is_still(run: OpenRun, now_s: float) -> bool:
    """Whether a request has brought next to nothing for a while; looked at once every ``HEDGE_S``."""
    if not is_due(run, now_s):
        return False
    if run.size_bytes - run.mark_bytes < MIN_RATE_BYTES_PER_S * (now_s - run.mark_s):
        return True
    run.mark_s, run.mark_bytes = now_s, run.size_bytes
    return False


def is_late(size_bytes: int, rate_bytes_per_s: float, other_bytes_per_s: float) -> bool:
    """Whether another peer, asked only now, would bring the rest in less than half the time. Rates of 0 are unknown."""
    if not rate_bytes_per_s or not other_bytes_per_s:
        return False
    return size_bytes / rate_bytes_per_s > _LATE_S + 2 * size_bytes / other_bytes_per_s
