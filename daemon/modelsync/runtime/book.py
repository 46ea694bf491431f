"""What this node knows of every model: read from Redis, kept on disk, handed to whoever decides.

This file orders reads, merges and saves. It decides nothing about versions (core.catalog does), and it writes nothing
to Redis (the publisher does).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

import structlog

from modelsync.core import catalog, rollcall
from modelsync.core.catalog import ModelRecord
from modelsync.core.errors import StaleEpoch
from modelsync.core.fleet import FleetRecord
from modelsync.core.ids import EntryId, ModelName
from modelsync.core.rollcall import RollCall
from modelsync.core.status import NodeReport
from modelsync.ports import Catalog, CatalogDisk, EpochLedger, LeaseView

log = structlog.get_logger()


SAVE_PAUSE_S = 0.015
"""The switch that was just woken has the disk to itself for this long: our fsyncs would hold up its own."""

OnChange = Callable[[set[ModelName]], None]


class Book:
    """The node's copy of the catalog. ``records`` is replaced, never edited, so a reader may hold one."""

    def __init__(
        self,
        catalog_: Catalog,
        disk: CatalogDisk,
        ledger: EpochLedger,
        now_s: Callable[[], float],
        alarm: Callable[[str, str], None] = lambda kind, what: None,
    ) -> None:
        self._alarm = alarm
        self._catalog = catalog_
        self._disk = disk
        self._ledger = ledger
        self._now_s = now_s
        self._guard = asyncio.Lock()
        self._looking = asyncio.Lock()
        self._roll = RollCall()
        self.records: dict[ModelName, ModelRecord] = {}
        self.orphans: dict[ModelName, ModelRecord] = {}
        """Records whose versions only this node has: published by it when its last writes were lost."""
        self.fleet = FleetRecord()
        self.nodes: list[NodeReport] = []
        self._unsaved: set[ModelName] = set()
        self._unsaved_orphans: set[ModelName] = set()
        self.manifests: Sequence[bytes] = ()
        """Manifests that came along with the last changes, unchecked; a pull begins with them."""
        self.refused_epoch = 0
        """The last epoch that Redis showed and this node refused."""
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

    async def refresh(self, on_change: OnChange, *, everything: bool = False) -> None:
        """Read what changed in Redis, tell ``on_change`` which models, and save it.

        Told before it is saved, so that a pull need not wait for this disk: an activation persists its own intent, and
        a start does not act on a record older than what it has active.

        Raises: RedisUnavailable, RedisRefused, MalformedMessage (of the log or the fleet); DiskFull, DiskFailed.
        """
        async with self._guard:
            applied = self._ledger.applied
            changes = await self._catalog.changes(applied)
            if not await self._accepts(changes.lease):
                return
            self.redis_behind = changes.tail < applied
            if changes.tail == applied and not everything and not self._unsaved:
                return
            names = None if everything or changes.tail < applied else changes.names
            read = await self._catalog.read(await self._catalog.model_names() if names is None else names)
            for name, reason in read.faults.items():
                log.warning("record.refused", model=name, reason=reason, next="the record on disk stays in force")
            changed = self._merge(read.records)
            self.manifests = changes.manifests
            if changed:
                on_change(changed)
                await asyncio.sleep(SAVE_PAUSE_S)
            await self._save(read.fleet, changes.tail)

    async def _accepts(self, lease: LeaseView) -> bool:
        """Whether what this Redis says may be applied: the receiver's own check of epoch, holder and nonce.

        A Redis that went back to an older grant is not believed; its holder, or the next one, writes to it again.
        """
        ledger = self._ledger
        if lease.epoch == 0 or (lease.epoch, lease.holder, lease.nonce) == (ledger.epoch, ledger.holder, ledger.nonce):
            return True
        try:
            await asyncio.to_thread(ledger.accept, lease.epoch, lease.holder, lease.nonce)
        except StaleEpoch as error:
            if self.refused_epoch != lease.epoch:
                self._alarm("lease.refused", f"epoch {lease.epoch} of {lease.holder}, {error.accepted} was accepted")
            self.refused_epoch = lease.epoch
            return False
        return True

    def trusts(self, lease: LeaseView) -> bool:
        """Whether a lease is held under the very grant that this node has accepted."""
        ledger = self._ledger
        grant = (lease.epoch, lease.holder, lease.nonce)
        return lease.state == "held" and grant == (ledger.epoch, ledger.holder, ledger.nonce)

    async def learn(self, records: Iterable[ModelRecord], fleet: FleetRecord) -> set[ModelName]:
        """Take over what another node knows better. Returns the models that changed. Raises DiskFull, DiskFailed."""
        async with self._guard:
            changed = self._merge(records)
            await self._save(fleet, self._ledger.applied)
            return changed

    def _merge(self, records: Iterable[ModelRecord]) -> set[ModelName]:
        changed = set()
        for theirs in records:
            ours = self.record(theirs.name)
            after = catalog.merged(ours, theirs)
            if after is ours:
                continue
            self._note_orphans(ours, theirs)
            for number in catalog.contested(ours, theirs):
                self._alarm("version.two_digests", f"version {number} of {theirs.name}")
            self.records = {**self.records, theirs.name: after}
            changed.add(theirs.name)
        self._unsaved |= changed
        return changed

    def _note_orphans(self, ours: ModelRecord, theirs: ModelRecord) -> None:
        lost = catalog.orphaned(ours, theirs)
        if not lost:
            return
        before = self.orphans.get(ours.name) or ModelRecord(ours.name)
        self.orphans = {**self.orphans, ours.name: replace(before, versions={**before.versions, **lost})}
        self._unsaved_orphans.add(ours.name)
        log.warning(
            "version.orphaned", model=ours.name, versions=sorted(lost), next="kept here; it can be published again"
        )

    async def commit(self, record: ModelRecord, at: EntryId) -> None:
        """Keep a change that this node itself has written to Redis. Raises DiskFull, DiskFailed."""
        async with self._guard:
            self.records = {**self.records, record.name: record}
            self._unsaved.add(record.name)
            await self._save(self.fleet, at)

    async def commit_fleet(self, record: FleetRecord) -> None:
        """Keep a change of the fleet's record that this node has written to Redis. Raises DiskFull, DiskFailed."""
        async with self._guard:
            await self._save(record, record.id)

    async def _save(self, fleet: FleetRecord, at: EntryId) -> None:
        """Bring the disk up to date, in one go; what fails is saved by the next."""
        if fleet.id <= self.fleet.id and not self._unsaved and at <= self._ledger.applied:
            return
        await asyncio.to_thread(self._save_all, max(fleet, self.fleet, key=lambda record: record.id), at)
        self._unsaved, self._unsaved_orphans = set(), set()

    def _save_all(self, fleet: FleetRecord, at: EntryId) -> None:
        for name in self._unsaved_orphans:
            self._disk.save_orphans(self.orphans[name])
        for name in self._unsaved:
            self._disk.save(self.records[name])
        if fleet.id > self.fleet.id:
            self._disk.save_fleet(fleet)
            self.fleet = fleet
        self._ledger.set_applied(at)

    async def saved(self) -> None:
        """Return when no save is under way."""
        async with self._guard:
            pass

    async def refresh_nodes(self, *, first: Collection[str] = (), everything: bool = True) -> None:
        """Look who is there, and read the reports that have changed. Raises RedisUnavailable, RedisRefused,
        MalformedMessage.

        Args:
            first: whose reports matter most here.
            everything: read all that changed, however many.
        """
        async with self._looking:
            look = await self._catalog.beats()
            self._roll.looked(look.names, look.beats, self._now_s())
            due = self._roll.due(self._now_s(), None if everything else rollcall.AT_ONCE, first)
            self._roll.read(due, await self._catalog.reports(due), self._now_s())
            self.nodes = self._roll.nodes(self._now_s())

    async def report_of(self, node: str) -> NodeReport | None:
        """One node's report, read now. Raises as ``refresh_nodes``."""
        return next(iter(await self._catalog.reports([node])), None)
