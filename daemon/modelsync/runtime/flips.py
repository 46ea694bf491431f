"""A rollout's one signal, on this host: from the announcement to the rename with as little in between as can be.

The announcement is a doorbell as ever: what it means is read from Redis, in one round trip, under the lease that this
node has accepted. Everything else that a change brings (the catalog on disk, the record's fsync, the report) comes a
moment later, so that no host's disk or processor delays another host's switch. Whoever misses the signal switches by
the ordinary way, when it next reads the catalog.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from modelsync.core.errors import BadName, ModelsyncError
from modelsync.core.ids import ModelName, model_name
from modelsync.core.rollout import record as rollout
from modelsync.ports import Catalog, Clock
from modelsync.runtime.activator import Ack, Activator
from modelsync.runtime.book import Book
from modelsync.runtime.crew import Crew

log = structlog.get_logger()

REST_S = 0.02
"""The other hosts' switches go first: on one machine they share its processors, on a network the switch's."""


class Flips:
    """Obeys the signal of a `together` rollout."""

    def __init__(
        self, *, book: Book, catalog_: Catalog, activator: Activator, clock: Clock, wake: Callable[[], None]
    ) -> None:
        self._book = book
        self._catalog = catalog_
        self._activator = activator
        self._clock = clock
        self._wake = wake
        self.crew = Crew()

    async def signal(self, hint: str) -> bool:
        """Switch, if the signal is true and this host is ready for it; False leaves it to the ordinary way."""
        try:
            name = model_name(hint)
            ack = self._activator.acked(name)
            return ack is not None and await self._flip(name, ack)
        except (BadName, ModelsyncError) as error:
            log.debug("flip.left", model=hint[:128], error=str(error))
            return False

    async def _flip(self, name: ModelName, ack: Ack) -> bool:
        seen = await self._catalog.glance(name)
        told = rollout.is_signal(seen.rollout, seen.desired, seen.pinned, ack.id, ack.digest)
        if not (told and self._book.trusts(seen.lease) and await self._activator.flip(name, ack, seen.id)):
            return False
        self.crew.start(self._rest(name, ack, self._clock.boottime_s()), f"flip-{name}")
        return True

    async def _rest(self, name: ModelName, ack: Ack, flipped_s: float) -> None:
        await asyncio.sleep(REST_S)
        log.info("version.activated", model=name, version=ack.version, rollout=str(ack.id), flipped_s=flipped_s)
        await self._activator.settle_flip(name, ack)
        self._wake()
