"""What the primary does for the object store: it says which versions stay, puts back what is missing, removes the rest.

This file gathers what core.condemned decides upon. Removing is safe whoever does it (a stale primary too); that only
the primary does is for economy, and because its catalog is the one that knows what is wanted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog

from modelsync.core import policy
from modelsync.core.catalog import ModelRecord
from modelsync.core.errors import ModelsyncError, NoPrimary, VersionRejected
from modelsync.core.ids import ModelName, Version
from modelsync.core.storage.condemned import Wanted
from modelsync.ports import Clock, Depot, DepotSweeper, Swept
from modelsync.runtime.book import Book
from modelsync.runtime.keeping import Keeper
from modelsync.runtime.publisher import Publisher

log = structlog.get_logger()

ROUNDS_IN_A_GRACE = 4
"""What is condemned in one round goes in the first that begins a grace later."""
LOOK_S = 2.0


class Sweeping:
    """The object store's garbage, while this node is primary."""

    def __init__(
        self,
        *,
        book: Book,
        keeper: Keeper,
        publisher: Publisher,
        depot: Depot,
        sweeper: DepotSweeper,
        clock: Clock,
        is_primary: Callable[[], bool],
        put_back: Callable[[ModelRecord, Version], Awaitable[None]],
    ) -> None:
        self._book = book
        self._keeper = keeper
        self._publisher = publisher
        self._depot = depot
        self._sweeper = sweeper
        self._clock = clock
        self._is_primary = is_primary
        self._put_back = put_back
        self._one_at_a_time = asyncio.Lock()

    async def run(self) -> None:
        due_s = self._clock.boottime_s() + self._keeper.settings.grace_s / ROUNDS_IN_A_GRACE
        while True:
            await asyncio.sleep(min(LOOK_S, self._keeper.settings.grace_s))
            if self._depot.trouble is not None:
                await asyncio.to_thread(self._depot.probe)
            if not self._is_primary() or not self._concerned():
                self._keeper.unswept = None
            elif self._clock.boottime_s() >= due_s:
                await self._round()
                due_s = self._clock.boottime_s() + self._keeper.settings.grace_s / ROUNDS_IN_A_GRACE

    async def _round(self) -> None:
        try:
            await self.sweep(dry_run=False)
            self._keeper.unswept = None
        except ModelsyncError as error:
            if self._keeper.unswept is None:
                log.warning("depot.unswept", error=str(error), next="nothing more is removed; tried again")
            self._keeper.unswept = f"the object store's garbage stays: {error}"

    def _concerned(self) -> bool:
        return any(record.placement.mode == "shared" for record in self._book.records.values())

    async def sweep(self, *, dry_run: bool) -> dict[str, Any]:
        """One round. Raises NoPrimary, RemoteFault, LocalFault, MalformedMessage."""
        async with self._one_at_a_time:
            if not self._publisher.gate.inside:
                self._depot.forget_publishes()
            loop = asyncio.get_running_loop()

            def kept() -> Mapping[ModelName, Wanted]:  # on the round's own thread
                return asyncio.run_coroutine_threadsafe(self._kept(), loop).result()

            grace_s = self._keeper.settings.grace_s
            swept = await asyncio.to_thread(self._sweeper.sweep, kept, grace_s, dry_run=dry_run)
            if not dry_run:
                await self._put_back_all(swept)
            return _report(swept, dry_run=dry_run)

    async def _kept(self) -> Mapping[ModelName, Wanted]:
        """As the catalog is at this moment, at which this node holds the lease: so nobody knows of anything later."""
        if not self._is_primary():
            raise NoPrimary(fleet=self._publisher.fleet)
        return {name: self._wanted(record) for name, record in self._book.records.items()}

    def _wanted(self, record: ModelRecord) -> Wanted:
        numbers = self._keeper.versions(record, None, policy.wanted(record, None)) | self._in_use(record.name)
        kept = {number: record.versions[number].digest for number in numbers if number in record.versions}
        return Wanted(record.head, kept, shared=record.placement.mode == "shared")

    def _in_use(self, name: ModelName) -> set[Version]:
        """What any host runs or wants of its own accord, by its last report."""
        lines = (node.models.get(name, {}) for node in self._book.nodes)
        return {Version(line[what]) for line in lines for what in ("active", "wanted") if line.get(what)}

    async def _put_back_all(self, swept: Swept) -> None:
        """Versions that are to stay and that the store has lost, or that were wanted again after they were dropped."""
        for name, number in swept.missing:
            record = self._book.record(name)
            if number in record.versions and all(self._keeper.holders(record, number)):
                log.warning("depot.incomplete", model=name, version=number, next="put there again")
                try:
                    await self._put_back(record, number)
                except VersionRejected as error:  # one that nobody trusted signed; it holds up no other
                    log.warning("depot.not_put_back", model=name, version=number, error=str(error), next="publish it")


def _report(swept: Swept, *, dry_run: bool) -> dict[str, Any]:
    versions: dict[str, list[int]] = {}
    for name, number in sorted(swept.versions):
        versions.setdefault(name, []).append(number)
    counts = {
        "condemned": swept.condemned,
        "waiting": swept.waiting,
        "deleted": swept.deleted,
        "deleted_bytes": swept.deleted_bytes,
        "garbage_bytes": swept.garbage_bytes,
        "missing": len(swept.missing),
    }
    if not dry_run and (versions or swept.condemned or swept.deleted):
        log.info("depot.swept", versions=versions, **counts)
    return {"versions": versions, **counts}
