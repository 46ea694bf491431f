"""The primary's writes: versions, wishes, and the restoring of a Redis that lost what this node has on disk.

One lock orders them all. Every write is fenced by the lease's grant and carries the next id; one whose answer was lost
is settled (``appending``) before the next one may take its id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import structlog
from blake3 import blake3

from modelsync.core import catalog, catalog_fields, commands
from modelsync.core import fleet as fleets
from modelsync.core import manifest as manifests
from modelsync.core.catalog import ModelRecord, VersionRecord, WishChange
from modelsync.core.commands import Command
from modelsync.core.errors import (
    CatalogBehind,
    DigestMismatch,
    NoPrimary,
)
from modelsync.core.fleet import FleetRecord, Term
from modelsync.core.ids import Digest, EntryId, FleetName, ModelName, NodeId, Version
from modelsync.core.manifest import FileEntry, Manifest
from modelsync.core.messages import announcement
from modelsync.core.rollout import orders as rollout_orders
from modelsync.core.rollout.orders import Start
from modelsync.core.storage.modes import Placement
from modelsync.ports import Authority, Catalog, Change, Clock, Depot, Published, ReceivedFile, SourceFile, VersionStore
from modelsync.runtime.appending import Appending
from modelsync.runtime.book import Book
from modelsync.runtime.gate import Gate
from modelsync.runtime.signing import Signing

log = structlog.get_logger()

Answer = TypeVar("Answer")
RecordChange = Callable[[ModelRecord, EntryId], ModelRecord]

INLINE_MANIFEST_BYTES = 4096
"""A manifest up to this size goes along in the log: a replica then saves a request before it can begin to pull."""


@dataclass(frozen=True, slots=True)
class Draft:
    """What is to be published: files of a complete source, and what people said about them."""

    model: ModelName
    root: Path
    files: Sequence[SourceFile]
    version: Version | None = None
    author: str = ""
    note: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    arrived: str = "event"
    received: Sequence[ReceivedFile] | None = None
    """Files that were uploaded whole, instead of ``files``."""
    content: Digest | None = None
    """What the sender says that it is."""


class Publisher:
    """Writes to the catalog while this node holds the lease."""

    def __init__(
        self,
        *,
        fleet: FleetName,
        node: NodeId,
        book: Book,
        catalog_: Catalog,
        store: VersionStore,
        clock: Clock,
        signing: Signing,
        authority: Callable[[], Authority | None],
        on_published: Callable[[ModelName], None],
        start_of: Callable[[ModelName, str], Start | None],
        alarm: Callable[[str, str], None] = lambda kind, what: None,
        initial: Callable[[ModelName, Sequence[FileEntry]], Placement] = lambda name, files: Placement(),
        depot: Depot | None = None,
    ) -> None:
        self._initial = initial
        self._depot = depot
        self.fleet = fleet
        self._node = node
        self._book = book
        self._catalog = catalog_
        self._store = store
        self._clock = clock
        self._signing = signing
        self._authority = authority
        self._on_published = on_published
        self._start_of = start_of
        """How a publish of a model by somebody begins its rollout; None: every host switches as soon as it can."""
        self._log = Appending(catalog_, alarm)
        self.guard = asyncio.Lock()
        """Held while anything is written to the catalog, and not while bytes are copied."""
        self.gate = Gate()

    # --- versions ----------------------------------------------------------------------------------------------------

    async def publish(self, draft: Draft) -> Published:
        """Ingest and announce one version; the head's own bytes again change nothing and say so.

        Raises: NotAModel, SourceChanged, DigestMismatch (what the sender said it would be), VersionConflict,
            PolicyRefusal (also where this host has no key that it would itself trust), DiskFull, DiskFailed, LeaseLost,
            NoPrimary, RedisUnavailable.
        """
        self._require_authority()
        self._signing.require_sealing()
        async with self.gate.shared():
            files = await asyncio.to_thread(self._ingest, draft)
            await self._keep_outside(draft.model, files)
            return await self._chained(lambda: self._publish(draft, files))

    def _placement(self, name: ModelName, files: Sequence[FileEntry]) -> Placement:
        record = self._book.record(name)
        return self._initial(name, files) if record.head is None else record.placement

    async def _keep_outside(self, name: ModelName, files: tuple[FileEntry, ...]) -> None:
        """A `shared` model's bytes lie in the object store before anything names them."""
        if self._depot is not None and self._placement(name, files).mode == "shared":
            await asyncio.to_thread(self._depot.keep_files, files)

    def _ingest(self, draft: Draft) -> tuple[FileEntry, ...]:
        record = self._book.record(draft.model)
        head = self._store.manifest(record.require(record.head).digest) if record.head is not None else None
        bases = head.files if head else ()
        if draft.received is not None:
            return self._store.take_in(draft.received, bases)
        return self._store.ingest(draft.root, draft.files, bases)

    async def _chained(self, write: Callable[[], Awaitable[Answer]]) -> Answer:
        """Write under the lock; where Redis has lost what came before, write that back first and try once more."""
        try:
            async with self.guard:
                return await write()
        except CatalogBehind:
            await self.restore()
            async with self.guard:
                return await write()

    async def _publish(self, draft: Draft, files: tuple[FileEntry, ...]) -> Published:
        await self._settle()
        record = self._book.record(draft.model)
        content = Digest(blake3(manifests.content_bytes(files)).digest())
        _require_content(draft, content)
        known = self._known(record, content, draft)
        if known is not None:
            return known
        authority = self._require_authority()
        manifest = self._manifest(draft, files, record, content, self._book.next_id(authority.epoch))
        data = manifests.encode(manifest)
        digest = await asyncio.to_thread(self._store.put_document, data)
        entry = _entry(manifest, digest, self._signing.seal(digest))
        start = self._start_of(draft.model, draft.author)
        if start is None:
            after = catalog.published(record, manifest.version, entry)
        else:
            after = rollout_orders.published(record, manifest.version, entry, start)
        placement = self._placement(draft.model, manifest.files)
        if self._depot is not None and placement.mode == "shared":
            await asyncio.to_thread(self._depot.keep_version, manifest, digest, data)
        after = replace(after, placement=placement)
        await self._write(
            record,
            after,
            "published",
            manifest.version,
            digest,
            note=draft.note,
            by=draft.author,
            data=data,
            signature=entry.signature,
            event="version.published",
        )
        log.info(
            "version.published",
            model=draft.model,
            version=manifest.version,
            digest=str(digest),
            size_bytes=manifest.size_bytes,
            by=draft.author,
        )
        return Published(draft.model, manifest.version, digest, manifest.id, unchanged=False)

    def _known(self, record: ModelRecord, content: Digest, draft: Draft) -> Published | None:
        """The version that already holds these bytes, where publishing them again would mean nothing.

        Found lying there at a start: any version counts, since a directory left over from an old primary must not
        bring an old version back. Seen to arrive, or asked for: only the head counts, since whoever puts old bytes
        back wants them; and it does not where it is to be signed and is not.
        """
        same = record.with_content(content)
        numbered = record.versions.get(draft.version) if draft.version is not None else None
        if numbered is not None and numbered.content == content:
            same = draft.version
        elif draft.version is not None or (same != record.head and draft.arrived != "scan"):
            return None
        if same is None:
            return None
        entry = record.versions[same]
        if draft.version is None and draft.arrived != "scan" and self._signing.wants_seal(entry):
            return None
        log.info("version.unchanged", model=record.name, version=same, digest=str(entry.digest))
        return Published(record.name, same, entry.digest, entry.id, unchanged=True)

    def _manifest(
        self, draft: Draft, files: tuple[FileEntry, ...], record: ModelRecord, content: Digest, at: EntryId
    ) -> Manifest:
        head = record.versions.get(record.head) if record.head is not None else None
        return Manifest(
            model=draft.model,
            version=draft.version or Version((record.head or 0) + 1),
            id=at,
            created_ms=self._clock.wall_ms(),
            author=draft.author,
            note=draft.note,
            parent=head.digest if head else None,
            content=content,
            metadata=draft.metadata,
            files=files,
        )

    # --- wishes ------------------------------------------------------------------------------------------------------

    async def carried_out(self, name: ModelName | None, ask: str) -> bool:
        """Whether a command heard under these names is done already. Raises LeaseLost, NoPrimary, RedisUnavailable.

        Exact, since no other holder can have written after what this one has read.
        """
        async with self.guard:
            await self._settle()
            self._require_authority()
            if name is None:
                return fleets.carried_out(self._book.fleet, ask)
            return catalog.carried_out(self._book.record(name), ask)

    async def command(self, command: Command, by: str, ask: str = "") -> ModelRecord:
        """Carry out a model's command. Raises PolicyRefusal, NoSuchVersion, LeaseLost, NoPrimary, RedisUnavailable."""
        assert command.model is not None
        kind = "deleted" if command.verb == "delete" else "wish"
        return await self.change_model(
            command.model,
            lambda record, at: commands.applied(command, record, at),
            kind=kind,
            event="wish.changed",
            note=str(command),
            by=by,
            ask=ask,
        )

    async def change_model(
        self,
        name: ModelName,
        change: RecordChange,
        *,
        kind: str,
        event: str,
        note: str,
        by: str,
        asked: bool = True,
        ask: str = "",
    ) -> ModelRecord:
        """Write what a function makes of a model's record. ``asked``: somebody asked for it, and history says so.

        The function is called with the record as it is under the lock, and the id that the change will have.
        Raises what it raises; LeaseLost, NoPrimary, RedisUnavailable.
        """
        return await self._chained(lambda: self._change_model(name, change, kind, event, note, by, asked, ask))

    async def _change_model(
        self, name: ModelName, change: RecordChange, kind: str, event: str, note: str, by: str, asked: bool, ask: str
    ) -> ModelRecord:
        await self._settle()
        authority = self._require_authority()
        record = self._book.record(name)
        at = self._book.next_id(authority.epoch)
        after = change(record, at)
        roll = after.rollout if kind == "rollout" else None
        version, digest = (roll.version, roll.digest) if roll else (after.wanted, None)
        if asked:
            after = catalog.noted(after, WishChange(at, self._clock.wall_ms(), by, note, version, ask=ask))
        await self._write(record, after, kind, version, digest, note=note, by=by, event=event)
        log.info(event, model=name, note=note, wanted=after.wanted, by=by)
        return after

    async def place(self, name: ModelName, placement: Placement) -> None:
        """Keep a model in another mode, or on other nodes. Raises LeaseLost, NoPrimary, RedisUnavailable."""
        where = f" on {', '.join(placement.everyone)}" if placement.everyone else ""
        await self.change_model(
            name,
            lambda record, at: catalog.placed(record, placement, at),
            kind="placed",
            event="model.placed",
            note=f"{placement.mode}{where}",
            by=self._node,
            asked=False,
        )

    # --- after a promotion, and after Redis lost data ----------------------------------------------------------------

    async def take_office(self) -> str:
        """The first entry of an epoch: who is primary now, and why (returned). Raises LeaseLost, RedisUnavailable."""
        async with self.guard:
            authority = self._require_authority()
            self._log.forget()
            record = self._book.fleet
            why = fleets.why_term(record, self._node)
            term = Term(authority.epoch, self._node, self._clock.wall_ms(), why)
            after = fleets.took_office(record, term, self._book.next_id(authority.epoch))
            await self._write_fleet(authority, after, "primary.changed", "primary", why)
            return why

    async def fleet_change(
        self, change: Callable[[FleetRecord, EntryId], FleetRecord], event: str, note: str, ask: str = ""
    ) -> None:
        """Change the fleet's record: pause, resume, a switchover. Raises LeaseLost, NoPrimary, RedisUnavailable."""
        async with self.guard:
            await self._settle()
            authority = self._require_authority()
            after = change(self._book.fleet, self._book.next_id(authority.epoch))
            await self._write_fleet(authority, fleets.asked(after, ask), event, "fleet", note)

    async def _write_fleet(self, authority: Authority, after: FleetRecord, event: str, kind: str, note: str) -> None:
        text = announcement(event, self.fleet, authority.epoch, str(after.id), node=self._node, why=note)
        entry = {"kind": kind, "by": self._node, "note": note}
        await self._log.append(authority, Change(after.id, "", None, None, entry, fleets.to_fields(after), (), text))
        await self._book.commit_fleet(after)

    async def restore(self) -> list[ModelName]:
        """Write back every model of which Redis knows less than this node. Raises LeaseLost, RedisUnavailable."""
        restored = []
        async with self.guard:
            await self._settle()
            read = await self._catalog.read(sorted(self._book.records))
            tail = (await self._catalog.changes(self._book.applied)).tail
            await self._restore_fleet(read.fleet, lost=tail < self._book.applied)
            for theirs in read.records:
                record = self._book.record(theirs.name)
                if theirs.id >= record.id and theirs == record:
                    continue
                authority = self._require_authority()
                after = catalog.reissued(record, self._book.next_id(authority.epoch))
                note = "Redis had lost it"
                await self._write(theirs, after, "restored", record.wanted, None, note=note, by=self._node)
                restored.append(record.name)
        if restored:
            log.warning("catalog.restored", models=restored, next="replicas reread it")
        return restored

    async def _restore_fleet(self, theirs: FleetRecord, *, lost: bool) -> None:
        """Also where only the log went back: its end must again be the last change that this node made."""
        record = self._book.fleet
        if lost or theirs.id < record.id:
            authority = self._require_authority()
            after = replace(record, id=self._book.next_id(authority.epoch))
            await self._write_fleet(authority, after, "fleet.restored", "fleet", "Redis had lost it")

    # --- writing -----------------------------------------------------------------------------------------------------

    def _require_authority(self) -> Authority:
        authority = self._authority()
        if authority is None:
            raise NoPrimary(fleet=self.fleet)
        return authority

    async def _write(
        self,
        before: ModelRecord,
        after: ModelRecord,
        kind: str,
        version: Version | None,
        digest: Digest | None,
        *,
        note: str,
        by: str,
        data: bytes = b"",
        signature: str = "",
        event: str = "wish.changed",
    ) -> None:
        authority = self._require_authority()
        written, removed = catalog_fields.changed_fields(before, after)
        log_fields = {"kind": kind, "model": after.name, "by": by, "note": note}
        if kind != "restored":
            log_fields["after"] = str(self._book.applied)  # the script refuses it where Redis has lost that entry
        if version is not None:
            log_fields["version"] = str(version)
        if digest is not None:
            log_fields["digest"] = str(digest)
        if signature:
            log_fields["signature"] = signature
        if 0 < len(data) <= INLINE_MANIFEST_BYTES:
            log_fields["manifest"] = data.decode()
        text = announcement(
            event,
            self.fleet,
            authority.epoch,
            str(after.id),
            model=after.name,
            version=version,
            digest=str(digest) if digest else None,
            node=self._node,
            by=by,
            note=note,
        )
        change = Change(
            after.id, after.name, version, str(digest) if digest else None, log_fields, written, removed, text
        )
        await self._log.append(authority, change)
        await self._book.commit(after, after.id)
        self._on_published(after.name)

    async def _settle(self) -> None:
        """A write whose answer was lost comes before any other."""
        if self._log.unsettled is not None:
            await self._log.settle(self._require_authority())
            await self._book.refresh(lambda names: None, everything=True)


def _require_content(draft: Draft, content: Digest) -> None:
    if draft.content is not None and draft.content != content:
        raise DigestMismatch(
            path=draft.model, chunk=None, expected=str(draft.content), actual=str(content), source="upload"
        )


def _entry(manifest: Manifest, digest: Digest, signature: str) -> VersionRecord:
    return VersionRecord(
        digest=digest,
        content=manifest.content,
        id=manifest.id,
        size_bytes=manifest.size_bytes,
        created_ms=manifest.created_ms,
        author=manifest.author,
        note=manifest.note,
        parent=manifest.parent,
        signature=signature,
    )
