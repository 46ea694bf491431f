"""What this node knows of every model: read from Redis, kept on disk, handed to whoever decides.

This file orders reads, merges and saves. It decides nothing about versions (core.catalog does), and it writes nothing
to Redis (the publisher does).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import structlog

from modelsync.core import catalog
from modelsync.core.catalog import ModelRecord, VersionRecord
from modelsync.core.errors import MalformedMessage
from modelsync.core.ids import EntryId, ModelName, Version
from modelsync.core.status import NodeReport
from modelsync.ports import Catalog, CatalogDisk, EpochLedger

log = structlog.get_logger()


class Book:
    """The node's copy of the catalog. ``records`` is replaced, never edited, so a reader may hold one."""

    def __init__(self, catalog_: Catalog, disk: CatalogDisk, ledger: EpochLedger) -> None:
        self._catalog = catalog_
        self._disk = disk
        self._ledger = ledger
        self._guard = asyncio.Lock()
        self.records: dict[ModelName, ModelRecord] = {}
        self.orphans: dict[ModelName, dict[Version, VersionRecord]] = {}
        self.nodes: list[NodeReport] = []
        self.redis_behind = False
        """Redis knows less than this node's disk: it was wiped or rolled back, and the holder has to restore it."""

    async def load(self) -> None:
        """Read the disk. Raises LayoutCorrupt, DiskFailed."""
        self.records = await asyncio.to_thread(self._disk.load)

    @property
    def applied(self) -> EntryId:
        """The last catalog change that this node has on disk."""
        return self._ledger.applied

    def record(self, name: ModelName) -> ModelRecord:
        return self.records.get(name) or ModelRecord(name)

    def next_id(self, epoch: int) -> EntryId:
        """The id of the next change under an epoch; seq begins at 1 in each."""
        applied = self._ledger.applied
        return applied.next() if applied.epoch == epoch else EntryId(epoch, 1)

    async def refresh(self, *, everything: bool = False) -> set[ModelName]:
        """Read what changed in Redis and save it. Returns the models whose record changed.

        Raises: RedisUnavailable, RedisRefused, MalformedMessage (of the log); DiskFull, DiskFailed.
        """
        async with self._guard:
            tail = await self._catalog.tail()
            applied = self._ledger.applied
            self.redis_behind = tail < applied
            if tail == applied and not everything:
                return set()
            names = None if everything or tail < applied else await self._catalog.changed_models(applied)
            changed = await self._read(await self._catalog.model_names() if names is None else names)
            if tail > applied:
                await asyncio.to_thread(self._ledger.set_applied, tail)
            return changed

    async def _read(self, names: Iterable[ModelName]) -> set[ModelName]:
        changed = set()
        for name in names:
            try:
                theirs = await self._catalog.model(name)
            except MalformedMessage as error:
                log.warning("record.refused", model=name, reason=error.reason, next="the record on disk stays in force")
                continue
            ours = self.record(name)
            if catalog.merged(ours, theirs) is not ours:
                self._note_orphans(ours, theirs)
                await self._keep(theirs)
                changed.add(name)
        return changed

    def _note_orphans(self, ours: ModelRecord, theirs: ModelRecord) -> None:
        lost = catalog.orphaned(ours, theirs)
        if lost:
            self.orphans[ours.name] = {**self.orphans.get(ours.name, {}), **lost}
            log.warning("version.orphaned", model=ours.name, versions=sorted(lost), next="kept here, not served")

    async def commit(self, record: ModelRecord, at: EntryId) -> None:
        """Keep a change that this node itself has written to Redis. Raises DiskFull, DiskFailed."""
        async with self._guard:
            await self._keep(record)
            await asyncio.to_thread(self._ledger.set_applied, at)

    async def note(self, at: EntryId) -> None:
        """Remember the id of a change that named no model."""
        await asyncio.to_thread(self._ledger.set_applied, at)

    async def _keep(self, record: ModelRecord) -> None:
        await asyncio.to_thread(self._disk.save, record)
        self.records = {**self.records, record.name: record}

    async def refresh_nodes(self) -> None:
        """Read the other nodes' reports. Raises RedisUnavailable, RedisRefused, MalformedMessage."""
        self.nodes = await self._catalog.nodes()
