"""A version's bytes and tree on this host, ready to be switched to. Steps 1 to 6 of PROTOCOL.md section 5.

This file orders what comes before anything visible changes; whether, and when, `current` is switched to what it has
prepared is the activator's. How bytes move is the edges'.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import structlog
from blake3 import blake3

from modelsync.core import manifest as manifests
from modelsync.core.catalog import ModelRecord
from modelsync.core.errors import DigestMismatch, LayoutCorrupt, ModelsyncError, PeerRefused
from modelsync.core.ids import Digest, ModelName, Version
from modelsync.core.manifest import MAX_FILES, FileEntry, Manifest
from modelsync.core.storage import parts
from modelsync.core.transfer import batches
from modelsync.ports import Candidate, Clock, Peer, Progress, Puller, VersionStore
from modelsync.runtime.book import Book
from modelsync.runtime.gates import Gates
from modelsync.runtime.room import Room
from modelsync.runtime.signing import Signing

log = structlog.get_logger()

MANIFEST_BYTES = 64 << 20
CHUNK_LIST_BYTES = 32 * (1 << 24)
"""A chunk list of 16 TiB in 1 MiB chunks, the largest file of ext4."""


@dataclass
class Work:
    """How far one model's staging has come, for reports; only the model's own task writes it."""

    state: str = "idle"
    progress: Progress | None = None


class Stager:
    """Holds versions' verified bytes and builds their trees."""

    def __init__(
        self,
        *,
        book: Book,
        store: VersionStore,
        puller: Puller,
        clock: Clock,
        peers: Callable[[ModelName, Version, int | None], Sequence[Peer]],
        concurrency: int,
        gates: Gates,
        room: Room,
        signing: Signing,
    ) -> None:
        self._gates = gates
        self.signing = signing
        self._book = book
        self._store = store
        self._puller = puller
        self._clock = clock
        self._peers = peers
        self.concurrency = concurrency
        self.room = room
        self.received = Progress()
        """What all pulls of this node have brought since it started."""

    async def stage(self, record: ModelRecord, number: Version, work: Work) -> Digest:
        """Bring a version to where a switch needs no more than a rename.

        Raises: RemoteFault, LocalFault, IntegrityFault; VersionRejected: its gate turned it down, now or before, or its
            signature does not count.
        """
        self._gates.require(record, number)
        async with self.held(record, number, work) as (manifest, digest):
            await asyncio.to_thread(self.build, manifest, digest)
            await self._gates.validate(record, self.candidate(record.name, number, digest))
        return digest

    def candidate(self, name: ModelName, number: Version, digest: Digest) -> Candidate:
        """A version as gates and servers see it."""
        return Candidate(name, number, digest, self._store.tree_path(name, digest))

    def document(self, digest: Digest) -> bytes:
        """A manifest that is held here. Raises LayoutCorrupt, DiskFailed."""
        data = self._store.read_document(digest)
        if data is None:
            raise LayoutCorrupt(path=str(digest), reason="a manifest that was held is gone; it is fetched again")
        return data

    def build(self, manifest: Manifest, digest: Digest) -> None:
        """Steps 4 to 6; blocks. Raises LayoutCorrupt, DiskFull, DiskFailed."""
        self._store.build_tree(manifest, digest)  # (4) and (5)
        self._check_tree(manifest, digest)  # (6)

    def _check_tree(self, manifest: Manifest, digest: Digest) -> None:
        if not self._store.tree_is_whole(manifest, digest):
            self._store.discard_tree(manifest.model, digest)
            damaged = self._store.discard_damaged(manifest, digest)
            raise LayoutCorrupt(
                path=f"{manifest.model} version {manifest.version}",
                reason=f"its tree was not whole ({', '.join(damaged) or 'files missing'}) and is built again",
            )

    @contextlib.asynccontextmanager
    async def held(self, record: ModelRecord, number: Version, work: Work) -> AsyncIterator[tuple[Manifest, Digest]]:
        """Hold a version's verified bytes, steps 1 to 3, and keep them from garbage collection meanwhile."""
        digest = self.signing.require(record, number)
        held = await asyncio.to_thread(self._survey, digest)
        kept: asyncio.Future[Digest] | None = None
        if held is None:
            work.state = "pulling"
            fetched, data = await asyncio.to_thread(self._fetch_manifest, record, number, digest)
            kept = asyncio.ensure_future(asyncio.to_thread(self._store.put_document, data))
            held = fetched
        manifest, missing = held
        self.signing.require_named(record, number, manifest)
        with self._store.leased(manifest.referenced() | {digest}):
            try:
                if missing:
                    await self._pull(manifest, missing, work)
            finally:
                if kept is not None:
                    await kept  # its fsyncs ran beside the pull; nothing refers to the manifest before step 5
            yield manifest, digest

    def _survey(self, digest: Digest) -> tuple[Manifest, Sequence[FileEntry]] | None:
        """A version's manifest and what of it is missing here; None without the manifest. Raises DiskFull."""
        manifest = self._store.manifest(digest)
        return None if manifest is None else (manifest, self._missing(manifest))

    def _missing(self, manifest: Manifest) -> Sequence[FileEntry]:
        """Raises DiskFull: it would not fit, so that nothing of it is begun."""
        missing = self._store.missing(manifest)
        if missing:
            self.room.require(missing)
        return missing

    def _fetch_manifest(
        self, record: ModelRecord, number: Version, digest: Digest
    ) -> tuple[tuple[Manifest, Sequence[FileEntry]], bytes]:
        told = (data for data in self._book.manifests if blake3(data).digest() == digest.raw)
        data = next(told, None) or self._puller.document(
            digest, self._peers(record.name, number, None), MANIFEST_BYTES, Progress(), keep=False
        )
        manifest = manifests.decode(data)
        self.signing.require_named(record, number, manifest)
        return (manifest, self._missing(manifest)), data

    async def _pull(self, manifest: Manifest, missing: Sequence[FileEntry], work: Work) -> None:
        """Steps 1 to 3 for what is not held, a bounded number of files at a time."""
        assert len(missing) <= MAX_FILES
        progress = work.progress = Progress(total_bytes=sum(entry.size_bytes for entry in missing), into=self.received)
        work.state = "pulling"
        started_s = self._clock.boottime_s()
        gate = asyncio.Semaphore(self.concurrency)

        async def one(pull: Callable[..., None], files: FileEntry | Sequence[FileEntry], part: int | None) -> None:
            async with gate:
                await asyncio.to_thread(pull, manifest, files, progress, part)

        try:
            async with self.room.taken(missing), asyncio.TaskGroup() as group:
                for part, entries in self._by_part(manifest, missing):
                    small, others = batches.together(entries)
                    if small:
                        group.create_task(one(self._pull_small, small, part))
                    for entry in others:
                        group.create_task(one(self.pull_file, entry, part))
        except* ModelsyncError as errors:
            raise errors.exceptions[0] from None
        finally:
            progress.cancelled.set()
        self._log_transfer(manifest, progress, self._clock.boottime_s() - started_s)

    def _by_part(
        self, manifest: Manifest, missing: Sequence[FileEntry]
    ) -> Sequence[tuple[int | None, Sequence[FileEntry]]]:
        """Files by the part of their model that they belong to: its holders are asked for them."""
        count = len(self._book.record(manifest.model).placement.parts)
        if not count:
            return [(None, missing)]
        groups = parts.split(manifest.files, count)
        return [(part, [entry for entry in missing if entry.digest in group]) for part, group in enumerate(groups)]

    def _pull_small(
        self, manifest: Manifest, entries: Sequence[FileEntry], progress: Progress, part: int | None
    ) -> None:
        self._puller.files(entries, self._peers(manifest.model, manifest.version, part), progress)

    def pull_file(self, manifest: Manifest, entry: FileEntry, progress: Progress, part: int | None) -> None:
        """One file of a version into the store; blocks. Raises as ``ports.Puller.file``."""

        def look() -> Sequence[Peer]:
            return self._peers(manifest.model, manifest.version, part)

        self._puller.file(entry, self.chunks_of(manifest, entry, part), look(), progress, look)

    def part_of(self, manifest: Manifest, entry: FileEntry) -> int | None:
        """The part of its model that a file belongs to; None of one that lies in one piece."""
        return next((part for part, entries in self._by_part(manifest, [entry]) if entries), None)

    async def stage_parts(self, record: ModelRecord, number: Version, mine: frozenset[int], work: Work) -> None:
        """Hold some parts of a version, verified, without its tree. Raises as ``held``."""
        manifest, digest = await self.document_of(record, number)
        with self._store.leased(manifest.referenced() | {digest}):
            absent = {entry.digest: entry for entry in await asyncio.to_thread(self._store.missing, manifest)}
            groups = parts.split(manifest.files, len(record.placement.shares))
            missing = [absent[file] for part in sorted(mine) for file in groups[part] if file in absent]
            if missing:
                await self._pull(manifest, missing, work)

    def chunks_of(self, manifest: Manifest, entry: FileEntry, part: int | None) -> Sequence[Digest]:
        """The digests of a file's chunks, fetched where they are not held; blocks. Raises as ``Puller.document``."""
        chunks = self._store.chunk_digests(entry)
        if chunks is None:
            assert entry.chunk_list is not None
            peers = self._peers(manifest.model, manifest.version, part)
            self._puller.document(entry.chunk_list, peers, CHUNK_LIST_BYTES, Progress())
            chunks = self._store.chunk_digests(entry)
        assert chunks is not None, "a document that was just pulled is held"
        return chunks

    async def document_of(self, record: ModelRecord, number: Version) -> tuple[Manifest, Digest]:
        """A version's manifest, fetched and kept where it is not held; none of its files. Raises as ``held``."""
        digest = self.signing.require(record, number)
        held = await asyncio.to_thread(self._store.manifest, digest)
        if held is not None:
            self.signing.require_named(record, number, held)
            return held, digest
        (manifest, _), data = await asyncio.to_thread(self._fetch_manifest, record, number, digest)
        await asyncio.to_thread(self._store.put_document, data)
        return manifest, digest

    def _log_transfer(self, manifest: Manifest, progress: Progress, took_s: float) -> None:
        blamed = sorted({_blamed(error) for error in progress.blamed})
        log.info(
            "version.pulled",
            model=manifest.model,
            version=manifest.version,
            size_bytes=progress.total_bytes,
            wire_bytes=progress.wire_bytes,
            content_bytes=progress.content_bytes,
            took_ms=round(1000 * took_s, 1),
            blamed=blamed,
        )


def _blamed(error: ModelsyncError) -> str:
    if isinstance(error, DigestMismatch):
        return f"{error.source}: wrong bytes"
    peer = getattr(error, "peer", "?")
    return f"{peer}: {error.status}" if isinstance(error, PeerRefused) else f"{peer}: unavailable"
