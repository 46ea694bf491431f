"""What this node knows of every model: read from Redis, kept on disk, handed to whoever decides.

This file orders reads, merges and saves. It decides nothing about versions (core.catalog does), and it writes nothing
to Redis (the publisher does).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

import structlog

from modelsync.core import catalog
from modelsync.core.catalog import ModelRecord
from modelsync.core.errors import MalformedMessage
from modelsync.core.fleet import FleetRecord
from modelsync.core.ids import EntryId, ModelName
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
        self.orphans: dict[ModelName, ModelRecord] = {}
        """Records whose versions only this node has: published by it when its last writes were lost."""
        self.fleet = FleetRecord()
        self.nodes: list[NodeReport] = []
        self.redis_behind = False
        """Redis knows less than this node's disk: it was wiped or rolled back, and the holder has to restore it."""

    async def load(self) -> None:
        """Read the disk. Raises LayoutCorrupt, DiskFailed."""
        self.records = await asyncio.to_thread(self._disk.load)
        self.orphans = await asyncio.to_thread(self._disk.load_orphans)
        self.fleet = await asyncio.to_thread(self._disk.load_fleet)

    @property
    def applied(self) -> EntryId:
        """The last catalog change that this node has on disk."""
        return self._ledger.applied

    @property
    def members(self) -> frozenset[str]:
        """The members of the fleet that this node has on disk."""
        return self._ledger.members

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
            await self.learn_fleet(await self._catalog.fleet())
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
            if await self._learn(theirs):
                changed.add(name)
        return changed

    async def learn(self, records: Iterable[ModelRecord]) -> set[ModelName]:
        """Take over what another node knows better. Returns the models that changed. Raises DiskFull, DiskFailed."""
        async with self._guard:
            return {record.name for record in records if await self._learn(record)}

    async def _learn(self, theirs: ModelRecord) -> bool:
        ours = self.record(theirs.name)
        if catalog.merged(ours, theirs) is ours:
            return False
        await self._keep_orphans(ours, theirs)
        await self._keep(theirs)
        return True

    async def learn_fleet(self, theirs: FleetRecord) -> None:
        """Take over a later fleet record. Raises DiskFull, DiskFailed."""
        if theirs.id > self.fleet.id:
            await asyncio.to_thread(self._disk.save_fleet, theirs)
            self.fleet = theirs

    async def _keep_orphans(self, ours: ModelRecord, theirs: ModelRecord) -> None:
        lost = catalog.orphaned(ours, theirs)
        if not lost:
            return
        before = self.orphans.get(ours.name) or ModelRecord(ours.name)
        record = replace(before, versions={**before.versions, **lost})
        await asyncio.to_thread(self._disk.save_orphans, record)
        self.orphans = {**self.orphans, ours.name: record}
        log.warning(
            "version.orphaned", model=ours.name, versions=sorted(lost), next="kept here; publish it again if wanted"
        )

    async def commit(self, record: ModelRecord, at: EntryId) -> None:
        """Keep a change that this node itself has written to Redis. Raises DiskFull, DiskFailed."""
        async with self._guard:
            await self._keep(record)
            await asyncio.to_thread(self._ledger.set_applied, at)

    async def commit_fleet(self, record: FleetRecord) -> None:
        """Keep a change of the fleet's record that this node has written to Redis. Raises DiskFull, DiskFailed."""
        async with self._guard:
            await self.learn_fleet(record)
            await asyncio.to_thread(self._ledger.set_applied, record.id)

    async def _keep(self, record: ModelRecord) -> None:
        await asyncio.to_thread(self._disk.save, record)
        self.records = {**self.records, record.name: record}

    async def refresh_nodes(self) -> None:
        """Read the other nodes' reports. Raises RedisUnavailable, RedisRefused, MalformedMessage."""
        self.nodes = await self._catalog.nodes()
