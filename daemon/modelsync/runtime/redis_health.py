"""What of Redis works for this node: reading, writing its report, hearing events. One can fail without the others.

Redis being away is a state here, not a failure: what is active goes on being served, and the loops come back.
"""

from __future__ import annotations

import asyncio
import random

import structlog

from modelsync.core.errors import ModelsyncError

log = structlog.get_logger()

PAUSE_S = (0.2, 5.0)
"""First and longest pause before Redis is tried again, each with jitter so that a fleet does not return in step."""


class RedisHealth:
    """The faults in force, by what they keep from working; each is told once, until it works again."""

    def __init__(self) -> None:
        self._faults: dict[str, str] = {"read": "not read yet"}

    @property
    def error(self) -> str | None:
        """What keeps this node from reading or writing; None: nothing."""
        faults = [self._faults[what] for what in ("read", "report") if what in self._faults]
        return "; ".join(dict.fromkeys(faults)) or None

    def of(self, what: str) -> str | None:
        return self._faults.get(what)

    def failed(self, what: str, error: ModelsyncError) -> None:
        """``what``: read, report, or events, whose loss costs only delay."""
        if what not in self._faults:
            log.warning("redis.lost", what=what, error=str(error), next="models go on being served; tried again")
        self._faults[what] = str(error)

    def unread(self, error: ModelsyncError) -> None:
        """Redis answers, and what it says cannot be taken on."""
        log.warning("catalog.unread", error=str(error), next="what is active goes on; read again")
        self._faults["read"] = str(error)

    def answered(self, what: str) -> None:
        if self._faults.pop(what, None) is not None:
            log.info("redis.reached", what=what)


class Pause:
    """The growing pause of one loop that Redis has failed."""

    def __init__(self) -> None:
        self._next_s = PAUSE_S[0]

    def over(self) -> None:
        self._next_s = PAUSE_S[0]

    async def take(self) -> None:
        await asyncio.sleep(self._next_s * random.uniform(0.5, 1.0))
        self._next_s = min(2 * self._next_s, PAUSE_S[1])
