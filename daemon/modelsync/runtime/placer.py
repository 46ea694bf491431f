"""What the primary does for placements: who is there, what must change (core.storage.placing), writing it.

A node counts as gone only when this primary has itself seen it silent for ``replace_after_s`` over successful reads:
a Redis that lost all reports, or a primary that was just promoted, replaces nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

import structlog

from modelsync.core import policy
from modelsync.core.catalog import ModelRecord
from modelsync.core.errors import IntegrityFault, ModelsyncError, RemoteFault, VersionRejected
from modelsync.core.ids import Digest, ModelName, NodeId, Version
from modelsync.core.manifest import FileEntry
from modelsync.core.status import NodeReport
from modelsync.core.storage import parts, placing
from modelsync.core.storage.modes import Placement
from modelsync.core.storage.placement import Place
from modelsync.core.storage.placing import Kept
from modelsync.ports import Clock, Depot
from modelsync.runtime.book import Book
from modelsync.runtime.keeping import Keeper
from modelsync.runtime.publisher import Publisher
from modelsync.runtime.staging import Stager, Work

log = structlog.get_logger()

LOOK_S = 1.0
"""How often the primary looks; a new owner reports within 2 s of holding what it was given."""


class Placer:
    """Places models while this node is primary."""

    def __init__(
        self,
        *,
        node: NodeId,
        book: Book,
        publisher: Publisher,
        stager: Stager,
        clock: Clock,
        depot: Depot | None,
        keeper: Keeper,
        is_primary: Callable[[], bool],
    ) -> None:
        self._node = node
        self._book = book
        self._publisher = publisher
        self._stager = stager
        self._clock = clock
        self._depot = depot
        self._keeper = keeper
        self._is_primary = is_primary
        self._seen_s: dict[str, float] = {}
        self._files: dict[Digest, Sequence[FileEntry]] = {}
        """Of versions that may lie in parts, by manifest."""
        self.trouble: str | None = None

    # --- the loop ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            if not self._is_primary():
                self._seen_s = {}
                continue
            self._look()
            try:
                await self._place()
                self.trouble = None
            except ModelsyncError as error:
                if self.trouble != str(error):
                    log.warning("placement.failed", error=str(error), next="what is placed stays; tried again")
                self.trouble = str(error)

    def _look(self) -> None:
        """Note who is alive. Owners that never reported under this primary count from its first look."""
        now_s = self._clock.boottime_s()
        owners = {owner for record in self._book.records.values() for owner in record.placement.everyone}
        for node in owners | {report.id for report in self._book.nodes}:
            self._seen_s.setdefault(node, now_s)
        for report in self._book.nodes:
            if not report.lost:
                self._seen_s[report.id] = now_s

    def places(self) -> list[Place]:
        """Nodes that may own models."""
        now_s = self._clock.boottime_s()
        patience_s = self._keeper.settings.replace_after_s
        present = {node for node, seen_s in self._seen_s.items() if now_s - seen_s < patience_s}
        reports = {report.id: report for report in self._book.nodes}
        gone = {node for node, report in reports.items() if report.extra.get("leaving")} | self._book.fleet.forgotten
        return [_place(node, reports.get(node)) for node in sorted(present - gone)]

    def kept(self) -> list[Kept]:
        return [self._kept(record) for record in self._book.records.values() if record.head is not None]

    def _kept(self, record: ModelRecord) -> Kept:
        mode, copies = self._keeper.settings.mode(record.name)
        numbers = self._keeper.versions(record, None, policy.wanted(record, None))
        size_bytes = sum(record.versions[number].size_bytes for number in numbers if number in record.versions)
        living = {node.id for node in self._book.nodes if not node.lost}
        silent = frozenset(owner for owner in record.placement.everyone if owner not in living)
        sizes = self._pieces(record, size_bytes) if mode == "partitioned" else (size_bytes,)
        holders = tuple(
            self._keeper.holders_of(record.name, record.wanted, share, len(sizes)) if record.wanted else frozenset()
            for share in range(len(sizes))
        )
        return Kept(record.name, sizes, record.placement, mode, copies, holders, silent)

    def _pieces(self, record: ModelRecord, size_bytes: int) -> tuple[int, ...]:
        """Bytes of each piece that a model shall lie in.

        One that lies in parts keeps their number while it is to be split at all: another number moves its files.
        """
        split_bytes, count = self._keeper.settings.split_bytes, len(record.placement.parts)
        newest = record.versions.get(record.wanted or record.head or Version(0))
        if newest is None or not split_bytes or newest.size_bytes <= split_bytes / (2 if count else 1):
            return (size_bytes,)
        files = self._files.get(newest.digest)
        if files is None:  # not known yet: it stays as it lies
            return (size_bytes // count,) * count if count else (size_bytes,)
        count = count or parts.number_of(files, split_bytes)
        return tuple(size * size_bytes // max(newest.size_bytes, 1) for size in parts.sizes_of(files, count))

    async def know_files(self) -> None:
        """Learn the files of models that lie, or shall lie, in parts: their sizes are what is placed."""
        split_bytes = self._keeper.settings.split_bytes
        known: dict[Digest, Sequence[FileEntry]] = {}
        for record in list(self._book.records.values()):
            number = record.wanted or record.head
            entry = record.versions.get(number) if number else None
            if entry is None or not split_bytes or entry.size_bytes <= split_bytes / 2:
                continue
            if entry.digest in self._files:
                known[entry.digest] = self._files[entry.digest]
                continue
            with contextlib.suppress(RemoteFault, IntegrityFault, VersionRejected):  # looked for again
                manifest, digest = await self._stager.document_of(record, Version(number or 0))
                known[digest] = manifest.files
        self._files = known

    async def _place(self) -> None:
        await self.know_files()
        kept = self.kept()
        if all(model.mode != "partitioned" and model.now.mode == model.mode for model in kept):
            return
        places = self.places()
        changes = await asyncio.to_thread(placing.changes, kept, places, self._keeper.settings.moves)
        failed: ModelsyncError | None = None
        for name, placement in changes.items():
            try:
                if placement.mode == "shared":
                    await self._upload(self._book.record(ModelName(name)))
                await self._publisher.place(ModelName(name), placement)
            except (RemoteFault, VersionRejected) as error:  # one model that cannot be had holds up no other
                failed = failed or error
        if failed is not None:
            raise failed

    # --- a model's first placement, and its way into the object store ------------------------------------------------

    def initial(self, name: ModelName, files: Sequence[FileEntry]) -> Placement:
        """Where a model goes that was never published before."""
        mode, copies = self._keeper.settings.mode(name)
        if mode != "partitioned":
            return Placement(mode)
        self._look()
        sizes = parts.sizes_of(files, parts.number_of(files, self._keeper.settings.split_bytes))
        new = Kept(name, sizes, Placement(), mode, copies, (frozenset(),) * len(sizes))
        chosen = placing.changes([*self.kept(), new], self.places(), self._keeper.settings.moves)
        return chosen.get(name, Placement("partitioned", copies, (self._node,)))

    async def _upload(self, record: ModelRecord) -> None:
        """Put every kept version that this host has or can get into the object store, before hosts rely on it.

        What is wanted must get there, whatever was reported: reports are up to 2 s late. An older version that nobody
        reports is left out; hosts keep what is not in the store, and `Sweeping` puts it there once one has it.
        """
        if self._depot is None:
            return
        kept = self._keeper.versions(record, None, policy.wanted(record, None))
        needed = {record.wanted, record.head}
        for number in sorted(kept & record.versions.keys()):
            if number in needed:
                await self.upload(record, number)
            elif all(self._keeper.holders(record, number)):
                with contextlib.suppress(VersionRejected):  # nobody who is trusted has signed it: it stays out
                    await self.upload(record, number)

    async def upload(self, record: ModelRecord, number: Version) -> None:
        """Put one version into the object store. Raises RemoteFault, LocalFault, VersionConflict."""
        assert self._depot is not None, "asked for by a fleet with an object store"
        async with self._stager.held(record, number, Work()) as (manifest, digest):
            data = await asyncio.to_thread(self._stager.document, digest)
            await asyncio.to_thread(self._depot.keep_files, manifest.files)
            await asyncio.to_thread(self._depot.keep_version, manifest, digest, data)


def _place(node: str, report: NodeReport | None) -> Place:
    extra = report.extra if report is not None else {}
    capacity = extra.get("capacity_bytes")
    zone = report.labels.zone if report is not None else ""
    weight = float(capacity) if isinstance(capacity, int) and capacity > 0 else 1.0
    alive = report is not None and not report.lost and not extra.get("disk_full")
    return Place(node, weight, zone, accepting=alive)
