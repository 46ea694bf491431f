"""The log's next entry, and the one whose answer was lost.

This file alone knows whether a change may stand in the log although nobody has heard so. Until that is settled, by
sending it again unchanged, no other change may take its id. What a change means is the publisher's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from modelsync.core.errors import AuthorityLost, LeaseLost, ModelsyncError, RedisUnavailable, VersionConflict
from modelsync.ports import Authority, Catalog, Change

SETTLE_TRIES = 5
SETTLE_PAUSE_S = 0.2


class Appending:
    """Appends for one writer, who calls nothing here twice at once."""

    def __init__(self, catalog: Catalog, alarm: Callable[[str, str], None]) -> None:
        self._catalog = catalog
        self._alarm = alarm
        self.unsettled: Change | None = None
        """It may stand in the log."""

    def forget(self) -> None:
        """Another epoch has begun: the script would refuse the id of the one before."""
        self.unsettled = None

    async def append(self, authority: Authority, change: Change) -> None:
        """Write, and ask again while no answer comes. Raises RedisUnavailable, AuthorityLost, and what refuses it."""
        unanswered = self.unsettled is change
        for attempt in range(SETTLE_TRIES):
            try:
                await self._catalog.append(authority, change)
                self.unsettled = None
                return
            except RedisUnavailable:
                self.unsettled, unanswered = change, True
                if attempt == SETTLE_TRIES - 1:
                    raise
                await asyncio.sleep(SETTLE_PAUSE_S)
            except ModelsyncError as error:
                # Refused, so it was not written and its id is free; but where the lease alone was missing, an earlier
                # try whose answer was lost may stand in the log.
                self.unsettled = change if unanswered and isinstance(error, LeaseLost) else None
                self._note_refusal(change, error)
                raise

    async def settle(self, authority: Authority) -> None:
        """Find out what became of a write whose answer was lost. Raises as ``append`` does."""
        change = self.unsettled
        if change is not None and change.id.epoch == authority.epoch:
            await self.append(authority, change)
        self.unsettled = None

    def _note_refusal(self, change: Change, error: ModelsyncError) -> None:
        if isinstance(error, VersionConflict):
            self._alarm("version.two_digests", f"version {change.version} of {change.model}")
        elif isinstance(error, AuthorityLost):
            self._alarm("write.refused", f"{change.id}, {change.model or 'the fleet'}: {error}")
