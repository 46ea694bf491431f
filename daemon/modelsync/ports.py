"""What the inside of modelsync needs of the world, as Protocols: edges implement them, runtime calls them.

Nothing is decided here. Every method says what it raises, in the words of ``core.errors``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, Protocol

from modelsync.core.catalog import ModelRecord
from modelsync.core.errors import ModelsyncError
from modelsync.core.fleet import FleetRecord
from modelsync.core.ids import Digest, EntryId, ModelName, NodeId, Version
from modelsync.core.layout import Entry, Kind
from modelsync.core.layout import SourceFile as SourceFile
from modelsync.core.lease import Authority as Authority
from modelsync.core.lease import LeaseView as LeaseView
from modelsync.core.manifest import FileEntry, Manifest
from modelsync.core.promise import Promise as Promise
from modelsync.core.settle import Writers
from modelsync.core.source_events import SourceEvent
from modelsync.core.status import NodeReport


class Clock(Protocol):
    """The node's own time. Wall time is for people only and never decides anything."""

    def boottime_s(self) -> float:
        """CLOCK_BOOTTIME: it goes on while the machine is suspended."""

    def wall_ms(self) -> int:
        """Unix milliseconds, to be shown."""


# --- authority ------------------------------------------------------------------------------------------------------


class Coordinator(Protocol):
    """The lease scripts of PROTOCOL.md section 4. Every method raises RedisUnavailable or RedisRefused."""

    async def read(self) -> LeaseView: ...

    async def acquire(self, observed: LeaseView, nonce: str, min_epoch: int) -> int | LeaseView:
        """The granted epoch, or the lease that stood in the way."""

    async def renew(self, authority: Authority, seq: int) -> LeaseView | None:
        """None: renewed. A view with epoch 0: there is no lease. Any other view: whose it is now."""

    async def reassert(self, authority: Authority, seq: int) -> LeaseView | None: ...

    async def release(self, authority: Authority, successor: str = "") -> None: ...


class PromisePeers(Protocol):
    """Asks other members, over HTTP, to promise (epoch, holder, nonce). Raises PeerUnavailable, PeerRefused."""

    async def promise(self, node: NodeId, epoch: int, holder: NodeId, nonce: str) -> Promise: ...


class EpochLedger(Protocol):
    """What a node must never forget about epochs: persisted and fsynced before each method returns."""

    @property
    def epoch(self) -> int: ...

    @property
    def holder(self) -> str: ...

    @property
    def nonce(self) -> str: ...

    @property
    def applied(self) -> EntryId: ...

    @property
    def members(self) -> frozenset[str]:
        """The known members of the fleet, this node among them."""

    def set_applied(self, at: EntryId) -> None:
        """Remember the last catalog change seen; it never goes down."""

    def set_members(self, members: Collection[str]) -> None:
        """Remember who belongs to the fleet, this node among them."""

    def accept(self, epoch: int, holder: str, nonce: str) -> None:
        """Remember a grant. Raises StaleEpoch below the highest accepted, or at it with another holder or nonce."""


# --- what the HTTP server and the commands ask of a node -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Upload:
    """A received model, still outside the store: a directory of this daemon's own below STATE/tmp."""

    model: ModelName
    root: Path
    """Every regular file below it belongs to the model, under its path relative to this."""
    note: str = ""
    author: str = ""
    version: Version | None = None
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """The outcome of a publish. ``unchanged``: the head already had these bytes, nothing was written."""

    model: ModelName
    version: Version
    digest: Digest
    id: EntryId
    unchanged: bool


class NodeApi(Protocol):
    """All that the HTTP server can ask. Errors are of ``core.errors``; the server only maps them to statuses."""

    @property
    def is_primary(self) -> bool: ...

    @property
    def primary_url(self) -> str | None:
        """Where the living primary listens, as far as this node knows."""

    def runs_here(self, text: str) -> bool:
        """Whether this node may carry out a command: the primary all, any node a ``resume`` without a primary."""

    def ready(self) -> tuple[bool, str]:
        """Whether everything wanted here is active, and if not, what is missing, as a sentence."""

    def staging_dir(self) -> Path:
        """A fresh empty directory below STATE/tmp for one upload; the caller removes it."""

    async def status(self) -> dict[str, Any]: ...

    async def models(self) -> list[dict[str, Any]]: ...

    async def model(self, name: ModelName) -> dict[str, Any]:
        """One model with its history, newest first. Raises NoSuchVersion."""

    async def manifest(self, name: ModelName, version: Version) -> bytes:
        """The manifest's canonical bytes. Raises NoSuchVersion."""

    def file_of(self, name: ModelName, version: Version, path: str) -> Path:
        """The object that holds a published file, held and verified here. Raises NoSuchVersion."""

    def object_path(self, digest: Digest) -> Path | None:
        """The immutable file of an object, manifest or chunk list held here; None if it is not held."""

    async def publish(self, upload: Upload) -> Published: ...

    async def command(self, text: str, by: str) -> dict[str, Any]:
        """Run one command in plain words (``pin fraud 12``). Raises PolicyRefusal, AuthorityLost, NoSuchVersion."""

    async def promise(self, epoch: int, holder: NodeId, nonce: str) -> Promise: ...

    def catalog(self) -> dict[str, dict[str, str]]:
        """This node's whole catalog as fields by model, and under ``""`` the fleet's record: for a new primary."""

    def note_epoch(self, epoch: int, node: str) -> None:
        """Somebody who asked carries this epoch; a primary of a lower one steps down."""

    @property
    def epoch(self) -> int:
        """The highest epoch known here; every answer carries it."""

    def metrics(self) -> bytes:
        """Prometheus text."""


# --- the models directory ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReadySource:
    """A complete version in the models directory, ready to be ingested."""

    model: ModelName
    version: Version | None
    """Given by a numbered layout; None: the next one."""
    root: Path
    """The directory that ``files`` are relative to."""
    files: tuple[SourceFile, ...]
    arrived: str
    """``event``: it came while the directory was watched; ``scan``: it lay there when the watch began."""
    key: str = ""
    """Its path relative to the models directory (``fraud``, ``fraud/12``, ``fraud.joblib``): what its signature is
    remembered by."""


class Sources(Protocol):
    """The watched models directory."""

    def __aiter__(self) -> AsyncIterator[ReadySource]: ...

    def refusals(self) -> Mapping[str, str]:
        """Path to reason, for everything that lies there and is not published; bounded."""

    def retry(self, source: ReadySource) -> None:
        """Yield a source again once it is complete again: it could not be published as it was."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Listing:
    """What one scan saw. ``identity`` is None, and everything else empty, where there is no models directory."""

    identity: tuple[int, int] | None = None
    """Device and inode of the models directory: another pair is another directory."""
    names: Mapping[str, Kind] = field(default_factory=dict)
    """Every name in the directory itself, and what kind of thing it is: a file, where it is not known better."""
    top: tuple[Entry, ...] = ()
    """Those of them that were asked for."""
    trees: Mapping[str, Sequence[Entry]] = field(default_factory=dict)
    """What lies below the directories among these, by their names."""
    capacity_bytes: int = 0
    """The size of the file system."""


class Scanner(Protocol):
    """Reads the models directory. Its methods block; each raises LocalFault where the disk does not answer."""

    def identity(self) -> tuple[int, int] | None:
        """Device and inode of the directory that is there now, or None."""

    def scan(self, entries: AbstractSet[str] | None) -> Listing:
        """List the directory, and what is below these entries; None: below all."""

    def writers(self, files: Sequence[Entry]) -> Writers:
        """Ask the kernel who has these files open for writing, and whether they still are what the scan saw."""


class Watch(Protocol):
    """Reports what happens in the models directory, from threads of its own. Its methods block."""

    def start(self, heard: Callable[[SourceEvent], None]) -> None:
        """Watch the directory that is there now. Raises WatchUnavailable; nothing is then watched."""

    def stop(self) -> None:
        """Stop; nothing is reported afterwards. Harmless when it was not started."""

    def alive(self) -> bool:
        """Whether events can still arrive."""


# --- catalog ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """One catalog change as it is written: the log entry, the model's changed fields, the announcement."""

    id: EntryId
    model: str
    """Empty for a change of the fleet, not of a model."""
    version: Version | None
    digest: str | None
    log: Mapping[str, str]
    written: Mapping[str, str]
    removed: Sequence[str]
    announcement: str


@dataclass(frozen=True, slots=True)
class LogChanges:
    """The lease, and what the log says has changed: its end, and the models named since; None where it does not reach
    back so far."""

    lease: LeaseView
    tail: EntryId
    names: Sequence[ModelName] | None
    manifests: Sequence[bytes] = ()
    """Small manifests that came along in the log, unchecked: whoever uses one compares its digest."""


@dataclass(frozen=True, slots=True)
class CatalogRead:
    """Records as Redis has them; one that cannot be parsed is left out, with its fault by its name."""

    records: Sequence[ModelRecord]
    fleet: FleetRecord
    faults: Mapping[ModelName, str]


class Catalog(Protocol):
    """The catalog as Redis holds it. Every method raises RedisUnavailable, RedisRefused or MalformedMessage."""

    async def changes(self, after: EntryId) -> LogChanges: ...

    async def model_names(self) -> Sequence[ModelName]: ...

    async def read(self, names: Sequence[ModelName]) -> CatalogRead: ...

    async def append(self, authority: Authority, change: Change) -> None:
        """Write one change, fenced. Raises LeaseLost, StaleEpoch, VersionConflict too."""

    async def nodes(self) -> list[NodeReport]: ...

    async def report(self, node: NodeId, fields: Mapping[str, str]) -> None: ...

    async def forget(self, node: NodeId) -> None: ...

    async def announce(self, text: str) -> None: ...

    async def answer(self, text: str) -> None: ...


# --- this host's disk; all methods block and run in threads -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Peer:
    """A host to pull from; its id is what a log blames."""

    id: str
    url: str


@dataclass
class Progress:
    """Counters of one pull, written by its threads and read by anyone."""

    total_bytes: int = 0
    done_bytes: int = 0
    wire_bytes: int = 0
    blamed: list[ModelsyncError] = field(default_factory=list)
    cancelled: Event = field(default_factory=Event)


class VersionStore(Protocol):
    """STATE. Methods raise DiskFull, DiskFailed, LayoutCorrupt."""

    def find(self, digest: Digest) -> Path | None: ...

    def object_path(self, digest: Digest) -> Path: ...

    def put_document(self, data: bytes) -> Digest: ...

    def read_document(self, digest: Digest) -> bytes | None: ...

    def manifest(self, digest: Digest) -> Manifest | None: ...

    def chunk_digests(self, entry: FileEntry) -> tuple[Digest, ...] | None: ...

    def missing(self, version: Manifest) -> list[FileEntry]: ...

    def require_space(self, needed_bytes: int) -> None: ...

    def tree_path(self, name: ModelName, digest: Digest) -> Path: ...

    def build_tree(self, version: Manifest, digest: Digest) -> Path: ...

    def tree_is_whole(self, version: Manifest, digest: Digest) -> bool: ...

    def discard_tree(self, name: ModelName, digest: Digest) -> None: ...

    def discard_damaged(self, version: Manifest, digest: Digest) -> list[str]: ...

    def leased(self, digests: frozenset[Digest]) -> AbstractContextManager[None]: ...

    def collect(self, keep: dict[ModelName, frozenset[Digest]], *, dry_run: bool = False) -> dict[str, int]: ...

    def ingest(self, root: Path, sources: Sequence[SourceFile]) -> tuple[FileEntry, ...]:
        """Copy the files of one version into the store. Raises SourceChanged, NotAModel, DiskFull, DiskFailed."""

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


class LiveLinks(Protocol):
    """LIVE. Methods raise DiskFull, DiskFailed."""

    def active(self, name: ModelName) -> Digest | None: ...

    def switch(self, record: ActiveRecord) -> None: ...

    def write_record(self, record: ActiveRecord) -> None: ...

    def records(self) -> dict[ModelName, ActiveRecord]: ...


class Puller(Protocol):
    """Bytes from peers into the store. Methods raise PeerUnavailable, PeerRefused, DigestMismatch, local faults."""

    def document(
        self, digest: Digest, peers: Sequence[Peer], max_bytes: int, progress: Progress, *, keep: bool = True
    ) -> bytes: ...

    def file(self, entry: FileEntry, chunks: Sequence[Digest], peers: Sequence[Peer], progress: Progress) -> None: ...


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


# --- the bus ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Woken:
    """Something was announced, or the subscription is new: reread. Both fields are hints and may be empty."""

    event: str = ""
    node: str = ""


@dataclass(frozen=True, slots=True)
class CommandHeard:
    """A command on ``control``, as it was typed."""

    text: str


class Bus(Protocol):
    """The subscription."""

    def listen(self) -> AsyncIterator[Woken | CommandHeard]:
        """Yield until the connection fails. Raises RedisUnavailable, RedisRefused: call again after a pause."""
