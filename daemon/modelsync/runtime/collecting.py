"""Garbage collection on this host: what is kept is looked up anew for each slice, and everything else goes."""

from __future__ import annotations

import asyncio

import structlog

from modelsync.core.catalog import ModelRecord
from modelsync.core.errors import ModelsyncError
from modelsync.core.ids import Digest, ModelName
from modelsync.core.storage import parts
from modelsync.ports import VersionStore
from modelsync.runtime.activator import Activator
from modelsync.runtime.book import Book
from modelsync.runtime.publisher import Publisher
from modelsync.runtime.wake import Wake

log = structlog.get_logger()

COLLECT_EVERY_S = 600.0
COLLECT_PAUSE_S = 30.0
"""After an activation, so that a series of publishes is cleaned up after once, and none of them waits for it."""
COLLECT_AT_ONCE = 32
COLLECT_BREATH_S = 0.05
"""All 1,500 things of 500 small versions at once kept every fsync of this host, a promise too, waiting for 0.3 s."""


class Collecting:
    """Removes what no retained version needs."""

    def __init__(self, *, book: Book, activator: Activator, publisher: Publisher, store: VersionStore) -> None:
        self._book = book
        self._activator = activator
        self._publisher = publisher
        self._store = store
        self._wake = Wake()

    def wake(self) -> None:
        """There may be something to remove before long."""
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait(COLLECT_EVERY_S)
            await asyncio.sleep(COLLECT_PAUSE_S)
            try:
                await self.collect()
            except ModelsyncError as error:
                log.warning("garbage.uncollected", error=str(error), next="nothing was removed; tried again later")

    async def collect(self, *, dry_run: bool = False) -> dict[str, int]:
        """Remove what no retained version needs, a slice at a time: publishes and promises go on in between.

        Raises: LocalFault, MalformedMessage of a damaged kept manifest.
        """
        total: dict[str, int] = {}
        at_most = None if dry_run else COLLECT_AT_ONCE
        while True:
            removed = await self._collect_slice(at_most, dry_run=dry_run)
            total = {what: total.get(what, 0) + count for what, count in removed.items()}
            if at_most is None or sum(removed.values()) - removed["size_bytes"] < at_most:
                break
            await asyncio.sleep(COLLECT_BREATH_S)
        if any(total.values()) and not dry_run:
            log.info("garbage.collected", **total)
        return total

    async def _collect_slice(self, at_most: int | None, *, dry_run: bool) -> dict[str, int]:
        async with self._publisher.gate.alone():  # what is kept is looked up anew: a wish may have moved meanwhile
            keep, shares = await asyncio.to_thread(self.retained)
            if not dry_run:
                await self._activator.gates.withdraw(keep)
            return await asyncio.to_thread(self._store.collect, keep, shares, dry_run=dry_run, at_most=at_most)

    def retained(self) -> tuple[dict[ModelName, frozenset[Digest]], dict[Digest, frozenset[Digest]]]:
        """Manifests that are kept, by model: all that this host must have, and what its cache has room for. And, by
        manifest, the files that it must have of others. Blocks."""
        firm: dict[ModelName, set[Digest]] = {}
        loose: dict[Digest, ModelName] = {}
        shares: dict[Digest, frozenset[Digest]] = {}
        for name, record in self._book.records.items():
            active = self._activator.records.get(name)
            kept = self._activator.keeper.retained(record, active, self._activator.wish(name))
            orphans = self._book.orphans.get(name)
            firm[name] = kept.firm | ({entry.digest for entry in orphans.versions.values()} if orphans else set())
            if active is not None:
                firm[name] |= {active.digest, active.previous_digest or active.digest}
            loose |= dict.fromkeys(kept.loose - firm[name], name)
            shares |= {digest: self._files(digest, mine, record) for digest, mine in kept.parts.items()}
        cached = () if self._activator.disk_full else self._activator.keeper.in_cache(loose, shares)
        for digest in cached:
            firm[loose[digest]].add(digest)
        return {name: frozenset(digests) for name, digests in firm.items()}, shares

    def _files(self, digest: Digest, mine: frozenset[int], record: ModelRecord) -> frozenset[Digest]:
        """The files of some parts of a version; none where not even its manifest is here."""
        manifest = self._store.manifest(digest)
        if manifest is None:
            return frozenset()
        groups = parts.split(manifest.files, len(record.placement.shares))
        return frozenset().union(*(groups[part] for part in mine))
