"""One host's versions: pulled, built, switched, reported. The numbered algorithm of PROTOCOL.md section 5.

This file orders the steps and what follows a failure. What is wanted comes from core.policy; how bytes move and links
switch is the edges'. A failure leaves `current` as it was, is shown in the report, and is tried again with a pause.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog
from blake3 import blake3

from modelsync.core import manifest as manifests
from modelsync.core import policy, status
from modelsync.core.catalog import ModelRecord
from modelsync.core.errors import DigestMismatch, LayoutCorrupt, ModelsyncError, PeerRefused
from modelsync.core.ids import Digest, ModelName, Version
from modelsync.core.manifest import MAX_FILES, FileEntry, Manifest
from modelsync.ports import ActiveRecord, Clock, LiveLinks, Peer, Progress, Puller, VersionStore
from modelsync.runtime.book import Book
from modelsync.runtime.crew import Crew

log = structlog.get_logger()

RETRY_FIRST_S = 0.5
RETRY_LONGEST_S = 30.0
MANIFEST_BYTES = 64 << 20
CHUNK_LIST_BYTES = 32 * (1 << 24)
"""A chunk list of 16 TiB in 1 MiB chunks, the largest file of ext4."""


@dataclass
class _Model:
    """What goes on with one model here; only its own task writes it."""

    wake: asyncio.Event = field(default_factory=asyncio.Event)
    started: bool = False
    state: str = "idle"
    error: str | None = None
    failures: int = 0
    progress: Progress | None = None
    held: frozenset[Version] = frozenset()


class Activator:
    """Brings every model to its wanted version, one task a model, so that a slow pull holds up no other."""

    def __init__(
        self,
        *,
        book: Book,
        store: VersionStore,
        live: LiveLinks,
        puller: Puller,
        clock: Clock,
        peers: Callable[[ModelName, Version], Sequence[Peer]],
        on_change: Callable[[ModelName, str, Version | None], Awaitable[None]],
        concurrency: int,
    ) -> None:
        self._book = book
        self._store = store
        self._live = live
        self._puller = puller
        self._clock = clock
        self._peers = peers
        self._on_change = on_change
        self.concurrency = concurrency
        self._models: dict[ModelName, _Model] = {}
        self._closing = False
        self.crew = Crew()
        self.pins: Mapping[ModelName, int | str] = {}
        self.records: dict[ModelName, ActiveRecord] = {}

    # --- the outside -------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Read what was active; a link that does not match its record, or a broken tree, is put right later."""
        self.records = await asyncio.to_thread(self._live.records)

    def wake(self, names: Sequence[ModelName] | set[ModelName] | None = None) -> None:
        """Look at these models (or all) again now."""
        for name in self._book.records if names is None else names:
            model = self._models.setdefault(name, _Model())
            model.wake.set()
            if not model.started and not self._closing:
                model.started = True
                self.crew.start(self._run(name, model), f"activate-{name}")

    async def close(self) -> None:
        """Stop every pull; what is verified of it stays for the next start."""
        self._closing = True
        for model in self._models.values():
            if model.progress is not None:
                model.progress.cancelled.set()
        await self.crew.close()

    def active_version(self, name: ModelName) -> Version | None:
        record = self.records.get(name)
        return record.version if record else None

    def wish(self, name: ModelName) -> policy.Wish:
        return policy.wanted(self._book.record(name), self.pins.get(name))

    def report(self) -> dict[str, dict[str, object]]:
        """Every model's line for the node's report."""
        lines = {}
        for name, model in self._models.items():
            wish = self.wish(name)
            lines[str(name)] = status.node_model(
                active=self.active_version(name),
                wanted=wish.version,
                held=model.held,
                state=model.state,
                error=model.error,
                why=wish.why,
            )
        return lines

    def transfers(self) -> dict[str, dict[str, int]]:
        """Pulls under way: bytes done of bytes in all, by model."""
        under_way = {name: model.progress for name, model in self._models.items() if model.progress}
        return {
            str(name): {"done_bytes": item.done_bytes, "total_bytes": item.total_bytes}
            for name, item in under_way.items()
        }

    def unready(self) -> list[str]:
        """Models whose wanted version is not active here, as phrases."""
        lines = []
        for name in self._book.records:
            wish, active = self.wish(name), self.active_version(name)
            if wish.waiting or wish.version != active:
                lines.append(
                    f"{name}: wants {wish.version or 'a version that is not published'}, runs {active or 'none'}"
                )
        return lines

    # --- one model ---------------------------------------------------------------------------------------------------

    async def _run(self, name: ModelName, model: _Model) -> None:
        while True:
            await model.wake.wait()
            model.wake.clear()
            try:
                await self._reconcile(name, model)
                model.failures, model.error = 0, None
            except ModelsyncError as error:
                await self._failed(name, model, error)
            finally:
                model.progress = None

    async def _failed(self, name: ModelName, model: _Model, error: ModelsyncError) -> None:
        model.failures += 1
        text = str(error)
        if model.error != text:
            log.warning("activation.failed", model=name, error=text, next="the old version stays; tried again")
        model.state, model.error = "failed", text
        pause = min(RETRY_LONGEST_S, RETRY_FIRST_S * 2 ** min(model.failures - 1, 10))
        asyncio.get_running_loop().call_later(pause * random.uniform(0.5, 1.0), model.wake.set)
        await self._on_change(name, "failed", None)

    async def _reconcile(self, name: ModelName, model: _Model) -> None:
        record = self._book.record(name)
        wish = self.wish(name)
        active = self.records.get(name)
        if active is not None and active.id > record.id:
            return  # the catalog on disk is older than what was activated: what Redis knows decides, when it answers
        if wish.version is None:
            model.state = "waiting" if wish.waiting else "idle"
        else:
            await self._activate(record, wish, model)
        for number in sorted({record.wanted, record.head} - {None, wish.version}, key=lambda n: n or 0):
            async with self._staged(record, Version(number or 0), model) as (manifest, digest):
                await asyncio.to_thread(self._store.build_tree, manifest, digest)
        if wish.waiting:
            model.state = "waiting"
        model.held = await asyncio.to_thread(self._held, record)
        await self._on_change(name, model.state, None)

    async def _activate(self, record: ModelRecord, wish: policy.Wish, model: _Model) -> None:
        number = wish.version
        assert number is not None
        if await self._is_active(record, number):
            model.state = "active"
            return
        started_s = self._clock.boottime_s()
        async with self._staged(record, number, model) as (manifest, digest):
            model.state = "activating"
            new = self._intent(record, number, digest)
            await asyncio.to_thread(self._switch, manifest, new)
        self.records[record.name] = new
        model.state, model.error = "active", None
        model.held = model.held | {number}
        took_ms = round(1000 * (self._clock.boottime_s() - started_s), 1)
        log.info("version.activated", model=record.name, version=number, why=wish.why, took_ms=took_ms)
        await self._on_change(record.name, "activated", number)  # (10)

    def _intent(self, record: ModelRecord, number: Version, digest: Digest) -> ActiveRecord:
        before, active = self.records.get(record.name), self._live.active(record.name)
        replaced = active if active != digest else None
        return ActiveRecord(
            model=record.name,
            version=number,
            digest=digest,
            id=record.id,
            since_ms=self._clock.wall_ms(),
            previous_version=before.version if before and before.digest == replaced else None,
            previous_digest=replaced,
        )

    def _switch(self, manifest: Manifest, new: ActiveRecord) -> None:
        self._store.build_tree(manifest, new.digest)  # (4) and (5)
        self._check_tree(manifest, new.digest)  # (6)
        self._live.switch(new)  # (7) and (8)

    async def _is_active(self, record: ModelRecord, number: Version) -> bool:
        active, digest = self.records.get(record.name), record.require(number).digest
        if active is None or active.version != number or self._live.active(record.name) != digest:
            return False
        return await asyncio.to_thread(self._is_whole, digest)

    def _is_whole(self, digest: Digest) -> bool:
        manifest = self._store.manifest(digest)
        return manifest is not None and self._store.tree_is_whole(manifest, digest)

    def _check_tree(self, manifest: Manifest, digest: Digest) -> None:
        if not self._store.tree_is_whole(manifest, digest):
            self._store.discard_tree(manifest.model, digest)
            damaged = self._store.discard_damaged(manifest, digest)
            raise LayoutCorrupt(
                path=f"{manifest.model} version {manifest.version}",
                reason=f"its tree was not whole ({', '.join(damaged) or 'files missing'}) and is built again",
            )

    def _held(self, record: ModelRecord) -> frozenset[Version]:
        held = set()
        for number, entry in record.versions.items():
            manifest = self._store.manifest(entry.digest)
            if manifest is not None and not self._store.missing(manifest):
                held.add(number)
        return frozenset(held)

    # --- staging -----------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _staged(
        self, record: ModelRecord, number: Version, model: _Model
    ) -> AsyncIterator[tuple[Manifest, Digest]]:
        """Hold a version's verified bytes, steps 1 to 3, and keep them from garbage collection meanwhile."""
        digest = record.require(number).digest
        held = await asyncio.to_thread(self._survey, digest)
        kept: asyncio.Future[Digest] | None = None
        if held is None:
            model.state = "pulling"
            fetched, data = await asyncio.to_thread(self._fetch_manifest, record.name, number, digest)
            kept = asyncio.ensure_future(asyncio.to_thread(self._store.put_document, data))
            held = fetched
        manifest, missing = held
        with self._store.leased(manifest.referenced() | {digest}):
            try:
                if missing:
                    await self._pull(manifest, missing, model)
            finally:
                if kept is not None:
                    await kept  # its fsyncs ran beside the pull; nothing refers to the manifest before step 5
            yield manifest, digest

    def _survey(self, digest: Digest) -> tuple[Manifest, Sequence[FileEntry]] | None:
        """A version's manifest and what of it is missing here; None without the manifest. Raises DiskFull."""
        manifest = self._store.manifest(digest)
        return None if manifest is None else (manifest, self._missing(manifest))

    def _missing(self, manifest: Manifest) -> Sequence[FileEntry]:
        missing = self._store.missing(manifest)
        if missing:
            self._store.require_space(sum(entry.size_bytes for entry in missing))
        return missing

    def _fetch_manifest(
        self, name: ModelName, number: Version, digest: Digest
    ) -> tuple[tuple[Manifest, Sequence[FileEntry]], bytes]:
        told = (data for data in self._book.manifests if blake3(data).digest() == digest.raw)
        data = next(told, None) or self._puller.document(
            digest, self._peers(name, number), MANIFEST_BYTES, Progress(), keep=False
        )
        manifest = manifests.decode(data)
        if (manifest.model, manifest.version) != (name, number):
            raise LayoutCorrupt(path=str(digest), reason="the manifest is not of the version that was published")
        return (manifest, self._missing(manifest)), data

    async def _pull(self, manifest: Manifest, missing: Sequence[FileEntry], model: _Model) -> None:
        """Steps 1 to 3 for what is not held, a bounded number of files at a time."""
        assert len(missing) <= MAX_FILES
        progress = model.progress = Progress(total_bytes=sum(entry.size_bytes for entry in missing))
        model.state = "pulling"
        started_s = self._clock.boottime_s()
        gate = asyncio.Semaphore(self.concurrency)

        async def one(entry: FileEntry) -> None:
            async with gate:
                await asyncio.to_thread(self._pull_file, manifest, entry, progress)

        try:
            async with asyncio.TaskGroup() as group:
                for entry in missing:
                    group.create_task(one(entry))
        except* ModelsyncError as errors:
            raise errors.exceptions[0] from None
        finally:
            progress.cancelled.set()
        self._log_transfer(manifest, progress, self._clock.boottime_s() - started_s)

    def _pull_file(self, manifest: Manifest, entry: FileEntry, progress: Progress) -> None:
        peers = self._peers(manifest.model, manifest.version)
        chunks = self._store.chunk_digests(entry)
        if chunks is None:
            assert entry.chunk_list is not None
            self._puller.document(entry.chunk_list, peers, CHUNK_LIST_BYTES, progress)
            chunks = self._store.chunk_digests(entry)
        assert chunks is not None, "a document that was just pulled is held"
        self._puller.file(entry, chunks, peers, progress)

    def _log_transfer(self, manifest: Manifest, progress: Progress, took_s: float) -> None:
        blamed = sorted({_blamed(error) for error in progress.blamed})
        log.info(
            "version.pulled",
            model=manifest.model,
            version=manifest.version,
            size_bytes=progress.total_bytes,
            wire_bytes=progress.wire_bytes,
            took_ms=round(1000 * took_s, 1),
            blamed=blamed,
        )


def _blamed(error: ModelsyncError) -> str:
    if isinstance(error, DigestMismatch):
        return f"{error.source}: wrong bytes"
    peer = getattr(error, "peer", "?")
    return f"{peer}: {error.status}" if isinstance(error, PeerRefused) else f"{peer}: unavailable"
