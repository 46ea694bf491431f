"""The object store that ``shared`` models lie in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from modelsync.core.ids import Digest, ModelName, Version
from modelsync.core.manifest import FileEntry, Manifest
from modelsync.core.storage.condemned import Wanted
from modelsync.ports.disk import Peer


class Depot(Protocol):
    """Versions in an object store, by digest: nothing is ever overwritten with other bytes. All methods block.

    Each raises ObjectStoreUnavailable or ObjectStoreRefused; those that read this host's disk, DiskFailed.
    """

    @property
    def peer(self) -> Peer:
        """The store as a source of chunks."""

    @property
    def trouble(self) -> str | None:
        """Why the last request failed, as a sentence; None if it was answered."""

    def keep_files(self, files: Sequence[FileEntry]) -> None:
        """Put the bytes of files held here, and their chunk lists, where the store lacks them."""

    def keep_version(self, manifest: Manifest, digest: Digest, data: bytes) -> None:
        """Put the manifest and claim its number: when this returns, the version is whole and not condemned.

        Raises VersionConflict: the number is claimed for another content, by another writer.
        """

    def has_version(self, name: ModelName, version: Version, digest: Digest) -> bool:
        """Whether this number was claimed for exactly this manifest."""

    def probe(self) -> None:
        """Ask the store anything, so that ``trouble`` is of now; raises nothing."""

    def forget_publishes(self) -> None:
        """No publish of this host is under way: what one that failed has left there is garbage."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What one round of garbage collection in the object store found, and did unless it was a preview."""

    versions: Sequence[tuple[ModelName, Version]] = ()
    """Dropped: they are kept no longer."""
    missing: Sequence[tuple[ModelName, Version]] = ()
    """Kept, and not in the store."""
    condemned: int = 0
    waiting: int = 0
    """Objects that are young, or were condemned not long enough ago."""
    deleted: int = 0
    deleted_bytes: int = 0
    garbage_bytes: int = 0
    """Of what was condemned or waits."""


class DepotSweeper(Protocol):
    """Removes from the object store what no version needs; safe beside any publisher and any other collector."""

    def sweep(self, kept: Callable[[], Mapping[ModelName, Wanted]], grace_s: float, *, dry_run: bool) -> Swept:
        """One round; blocks. ``kept`` says what the catalog keeps, and raises NoPrimary where this host may not say.

        Raises (and removes nothing more): ObjectStoreUnavailable, ObjectStoreRefused, LayoutCorrupt, MalformedMessage,
            PolicyRefusal, NoPrimary.
        """
