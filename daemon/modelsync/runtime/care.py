"""What one host does with what it keeps: previews and runs of garbage collection, scrubs with repair, searches.

This file orders reading, setting aside, pulling anew and rebuilding; the bytes are the edges'.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

import structlog

from modelsync.core import find
from modelsync.core.catalog import ModelRecord, VersionRecord
from modelsync.core.errors import ModelsyncError, NoSuchVersion
from modelsync.core.find import Condition
from modelsync.core.ids import Digest, ModelName, Version
from modelsync.core.manifest import Manifest
from modelsync.core.status import iso_time
from modelsync.core.storage import parts
from modelsync.ports import BytesCheck, Progress
from modelsync.runtime.node import Node
from modelsync.runtime.staging import Work
from modelsync.runtime.sweeping import Sweeping
from modelsync.runtime.under_way import UnderWay

log = structlog.get_logger()

FIRST_SCRUB_S = 3600.0
"""After a start: what comes up has other things to read."""
DAY_S = 86_400.0
LOOK_EVERY_S = 60.0
MAX_FOUND = 1000


class Care:
    """Implements ports.CareApi."""

    def __init__(
        self,
        node: Node,
        check: BytesCheck,
        scrub_days: Callable[[], float],
        under_way: UnderWay,
        sweeping: Sweeping | None = None,
    ) -> None:
        self._node = node
        self._sweeping = sweeping
        self._check = check
        self._scrub_days = scrub_days
        self._under_way = under_way
        self._one_at_a_time = asyncio.Lock()

    # --- garbage -----------------------------------------------------------------------------------------------------

    async def collect(self, *, dry_run: bool) -> dict[str, Any]:
        """What goes, by version, and how much of everything; on the primary, also of the object store.

        Raises LocalFault, MalformedMessage; RemoteFault of the object store, after this host's own part.
        """
        node = self._node
        kept, shares = await asyncio.to_thread(node.collecting.retained)
        going = {str(name): await asyncio.to_thread(self._going, record, kept.get(name, frozenset()) | shares.keys())
                 for name, record in node.book.records.items()}  # fmt: skip
        totals = await node.collecting.collect(dry_run=dry_run)
        answer = {"dry_run": dry_run, "versions": {name: found for name, found in going.items() if found}, **totals}
        if self._sweeping is not None and node.elector.authority is not None:
            answer["object_store"] = await self._sweeping.sweep(dry_run=dry_run)
        return answer

    def _going(self, record: ModelRecord, kept: frozenset[Digest]) -> list[int]:
        store = self._node.store
        stale = (
            (number, entry.digest) for number, entry in sorted(record.versions.items()) if entry.digest not in kept
        )
        return [number for number, digest in stale if store.find(digest) is not None]

    # --- scrub -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Scrub again and again, never within the first hour."""
        due_s = self._node.clock.boottime_s() + FIRST_SCRUB_S
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            days, now_s = self._scrub_days(), self._node.clock.boottime_s()
            if days and now_s >= due_s:
                try:
                    await self.scrub()
                except ModelsyncError as error:
                    log.warning("scrub.failed", error=str(error), next="tried again after the usual time")
                due_s = self._node.clock.boottime_s() + days * DAY_S

    async def scrub(self) -> dict[str, Any]:
        """One pass over all that is held. Raises LocalFault."""
        checked, damaged, repaired = 0, [], 0
        async for record, number, bad in self._read_again(list(self._node.book.records.values()), set_aside=True):
            checked += 1
            if bad:
                fixed = await self._repair(record, number, bad)
                damaged.append({"model": record.name, "version": number, "paths": bad[:20], "repaired": fixed})
                repaired += fixed
        log.info("store.scrubbed", versions=checked, damaged=len(damaged), repaired=repaired)
        return {"versions": checked, "damaged": damaged}

    async def verify(self, name: ModelName | None) -> list[dict[str, Any]]:
        """As a scrub, but nothing is changed. Raises LocalFault, NoSuchVersion."""
        records = self._node.book.records
        if name is not None and name not in records:
            raise NoSuchVersion(reason=f"this host knows no model {name}")
        chosen = list(records.values()) if name is None else [records[name]]
        return [
            {"model": record.name, "version": number, "fault": f"damaged: {', '.join(bad[:20])}" if bad else None}
            async for record, number, bad in self._read_again(chosen, set_aside=False)
        ]

    def scrubbing(self) -> dict[str, Any]:
        """How far the scrub or verification under way is; empty: none is."""
        return self._under_way.lines()["scrub"]

    async def _read_again(
        self, records: Sequence[ModelRecord], *, set_aside: bool
    ) -> AsyncIterator[tuple[ModelRecord, Version, list[str]]]:
        """Each version that is held, and the paths that are damaged; one such pass at a time."""
        async with self._one_at_a_time:
            entries = [(record, *item) for record in records for item in sorted(record.versions.items())]
            progress = self._under_way.scrub = Progress(total_bytes=await asyncio.to_thread(self._to_read, entries))
            try:
                for record, number, entry in entries:
                    manifest = await asyncio.to_thread(self._held, record, entry)
                    if manifest is not None:
                        look = functools.partial(self._check.check, set_aside=set_aside)
                        bad = await asyncio.to_thread(look, manifest, record.name, entry.digest, progress)
                        yield record, number, bad
            finally:
                self._under_way.scrub = None

    def _to_read(self, entries: Sequence[tuple[ModelRecord, Version, VersionRecord]]) -> int:
        manifests = (self._held(record, entry) for record, _, entry in entries)
        return sum(manifest.size_bytes for manifest in manifests if manifest is not None)

    def _held(self, record: ModelRecord, entry: VersionRecord) -> Manifest | None:
        """The manifest of a version whose tree stands here; one that is itself damaged counts as not held.

        Of one that lies here in parts, without the files that do not.
        """
        store, mine = self._node.store, record.placement.owned(self._node.identity.node)
        if store.tree_path(record.name, entry.digest).is_dir():
            return store.manifest(entry.digest)
        manifest = store.manifest(entry.digest) if record.placement.parts and mine else None
        if manifest is None:
            return None
        groups = parts.split(manifest.files, len(record.placement.parts))
        owned = frozenset().union(*(groups[part] for part in mine))
        here = tuple(file for file in manifest.files if file.digest in owned and store.find(file.digest) is not None)
        return replace(manifest, files=here) if here else None

    async def _repair(self, record: ModelRecord, number: Version, bad: list[str]) -> bool:
        """Pull what was set aside, and put a tree of good bytes in the place of the damaged one."""
        log.error("version.damaged", model=record.name, version=number, paths=bad[:20], next="pulled anew from peers")
        node = self._node
        try:
            if node.store.tree_path(record.name, record.versions[number].digest).is_dir():
                async with node.stager.held(record, number, Work()) as (manifest, digest):
                    await asyncio.to_thread(self._rebuild, record.name, manifest, digest)
            else:
                mine = record.placement.owned(node.identity.node)
                await node.stager.stage_parts(record, number, mine, Work())
        except ModelsyncError as error:
            log.error("version.unrepaired", model=record.name, version=number, error=str(error), next="the next scrub")
            return False
        node.activator.wake([record.name])
        log.info("version.repaired", model=record.name, version=number)
        return True

    def _rebuild(self, name: ModelName, manifest: Manifest, digest: Digest) -> None:
        self._node.store.discard_tree(name, digest)
        self._node.store.build_tree(manifest, digest)

    # --- searching ---------------------------------------------------------------------------------------------------

    async def find(self, conditions: Sequence[Condition]) -> list[dict[str, Any]]:
        """Newest first within each model; at most 1,000."""
        found: list[dict[str, Any]] = []
        for record in sorted(self._node.book.records.values(), key=lambda record: record.name):
            found += await asyncio.to_thread(self._found, record, conditions)
            if len(found) >= MAX_FOUND:
                break
        return found[:MAX_FOUND]

    def _found(self, record: ModelRecord, conditions: Sequence[Condition]) -> list[dict[str, Any]]:
        lines = []
        for number, entry in sorted(record.versions.items(), reverse=True):
            manifest = self._node.store.manifest(entry.digest)
            metadata = dict(manifest.metadata) if manifest is not None else {}
            fields = {"model": str(record.name), "author": entry.author, "note": entry.note, **metadata}
            if all(find.satisfies(fields, condition) for condition in conditions):
                line = {"model": record.name, "version": number, "created": iso_time(entry.created_ms)}
                lines.append({**line, "author": entry.author, "note": entry.note, "metadata": metadata})
        return lines
