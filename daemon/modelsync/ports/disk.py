"""This host's disk and what is pulled onto it. All methods block and run in threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock
from typing import Protocol

from modelsync.core.catalog import ModelRecord
from modelsync.core.errors import ModelsyncError
from modelsync.core.fleet import FleetRecord
from modelsync.core.ids import Digest, EntryId, ModelName, Version
from modelsync.core.manifest import FileEntry, Manifest
from modelsync.core.sources.layout import SourceFile
from modelsync.core.transfer.chunk_map import ChunkMap


@dataclass(frozen=True, slots=True)
class Peer:
    """A host to pull from; its id is what a log blames."""

    id: str
    url: str
    distance: int = 2
    """From this node, see ``core.swarm.neighbours``."""
    primary: bool = False
    holds: bool = True
    """It has reported that it holds all of the version. Others may be pulling it."""
    owner: bool = False
    """Its fleet wants it to hold it. One that has not said that it does is asked after all who have."""


@dataclass(frozen=True, slots=True)
class HeldPart:
    """What is verified here of an object that is still being pulled."""

    path: Path
    chunks: ChunkMap
    pulling: bool
    """The rest is on its way, rather than waited for."""


@dataclass
class Progress:
    """Counters of one pull, written by its threads and read by anyone."""

    total_bytes: int = 0
    done_bytes: int = 0
    wire_bytes: int = 0
    content_bytes: int = 0
    """What the bytes on the wire stood for: more, where they were compressed."""
    into: Progress | None = None
    """Counts along: all pulls of a node."""
    blamed: list[ModelsyncError] = field(default_factory=list)
    cancelled: Event = field(default_factory=Event)
    _guard: Lock = field(default_factory=Lock, repr=False, compare=False)

    def add(self, *, done_bytes: int = 0, wire_bytes: int = 0, content_bytes: int | None = None) -> None:
        """Count, from whichever of its threads. Bytes on the wire are content unless told otherwise."""
        with self._guard:
            self.done_bytes += done_bytes
            self.wire_bytes += wire_bytes
            self.content_bytes += wire_bytes if content_bytes is None else content_bytes
        if self.into is not None:
            self.into.add(done_bytes=done_bytes, wire_bytes=wire_bytes, content_bytes=content_bytes)


@dataclass(frozen=True, slots=True)
class ReceivedFile:
    """A file that was uploaded whole, verified chunk by chunk and durable."""

    entry: FileEntry
    """With all its chunk digests inline."""
    path: Path | None
    """On the store's file system, nobody else's; None: the store held these bytes already."""


class VersionStore(Protocol):
    """STATE. Methods raise DiskFull, DiskFailed, LayoutCorrupt."""

    def find(self, digest: Digest) -> Path | None: ...

    def object_path(self, digest: Digest) -> Path: ...

    def part(self, digest: Digest) -> HeldPart | None: ...

    def put_document(self, data: bytes) -> Digest: ...

    def read_document(self, digest: Digest) -> bytes | None: ...

    def manifest(self, digest: Digest) -> Manifest | None: ...

    def chunk_digests(self, entry: FileEntry) -> tuple[Digest, ...] | None: ...

    def missing(self, version: Manifest) -> list[FileEntry]: ...

    def require_space(self, needed_bytes: int) -> None: ...

    def capacity_bytes(self) -> int: ...

    def tree_path(self, name: ModelName, digest: Digest) -> Path: ...

    def build_tree(self, version: Manifest, digest: Digest) -> Path: ...

    def tree_is_whole(self, version: Manifest, digest: Digest) -> bool: ...

    def discard_tree(self, name: ModelName, digest: Digest) -> None: ...

    def discard_damaged(self, version: Manifest, digest: Digest) -> list[str]: ...

    def leased(self, digests: frozenset[Digest]) -> AbstractContextManager[None]: ...

    def collect(
        self,
        keep: Mapping[ModelName, frozenset[Digest]],
        shares: Mapping[Digest, frozenset[Digest]],
        *,
        dry_run: bool = False,
        at_most: int | None = None,
    ) -> dict[str, int]: ...

    def ingest(
        self, root: Path, sources: Sequence[SourceFile], bases: Sequence[FileEntry] = ()
    ) -> tuple[FileEntry, ...]:
        """Copy the files of one version into the store. Raises SourceChanged, NotAModel, DiskFull, DiskFailed."""

    def take_in(self, received: Sequence[ReceivedFile], bases: Sequence[FileEntry] = ()) -> tuple[FileEntry, ...]:
        """Give uploaded files their names in the store. Raises SourceChanged, DiskFull, DiskFailed."""

    def survey(self, root: Path) -> tuple[SourceFile, ...]:
        """Every regular file below a directory of our own. Raises NotAModel, DiskFailed."""

    def new_staging(self) -> Path: ...


@dataclass(frozen=True, slots=True)
class ActiveRecord:
    """STATE/active/NAME.json: what this host means to run, fsynced before `current` is touched."""

    model: ModelName
    version: Version
    digest: Digest
    id: EntryId
    """The catalog change that made it wanted: this host's high-water mark for the model."""
    since_ms: int
    previous_version: Version | None = None
    previous_digest: Digest | None = None
    unsettled: str = ""
    """Step 9 is still to be done: ``trial``, and a failure rolls back; ``tell``, and it is tried again."""


class LiveLinks(Protocol):
    """LIVE. Methods raise DiskFull, DiskFailed."""

    def active(self, name: ModelName) -> Digest | None: ...

    def switch(self, record: ActiveRecord) -> None: ...

    def flip(self, record: ActiveRecord) -> None: ...

    def settle(self, record: ActiveRecord) -> None: ...

    def clear(self, name: ModelName) -> None:
        """Take a model out of use on this host."""

    def write_record(self, record: ActiveRecord) -> None: ...

    def records(self) -> dict[ModelName, ActiveRecord]: ...


class Puller(Protocol):
    """Bytes from peers into the store. Methods raise PeerUnavailable, PeerRefused, DigestMismatch, local faults."""

    def document(
        self, digest: Digest, peers: Sequence[Peer], max_bytes: int, progress: Progress, *, keep: bool = True
    ) -> bytes: ...

    def file(
        self,
        entry: FileEntry,
        chunks: Sequence[Digest],
        peers: Sequence[Peer],
        progress: Progress,
        look: Callable[[], Sequence[Peer]] | None = None,
    ) -> None: ...

    def files(self, entries: Sequence[FileEntry], peers: Sequence[Peer], progress: Progress) -> None:
        """Many files of one chunk at most, together."""


class CatalogDisk(Protocol):
    """STATE/catalog and STATE/sources.json. Methods raise DiskFull, DiskFailed, LayoutCorrupt."""

    def load(self) -> dict[ModelName, ModelRecord]: ...

    def save(self, record: ModelRecord) -> None: ...

    def load_fleet(self) -> FleetRecord: ...

    def save_fleet(self, record: FleetRecord) -> None: ...

    def load_orphans(self) -> dict[ModelName, ModelRecord]: ...

    def save_orphans(self, record: ModelRecord) -> None: ...

    def load_sources(self) -> dict[str, tuple[SourceFile, ...]]: ...

    def save_sources(self, sources: Mapping[str, tuple[SourceFile, ...]]) -> None: ...
