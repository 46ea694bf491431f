"""The object store that ``shared`` models lie in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from modelsync.core.ids import Digest, ModelName, Version
from modelsync.core.manifest import FileEntry, Manifest
from modelsync.ports.disk import Peer


class Depot(Protocol):
    """Versions in an object store, by digest: nothing is ever overwritten with other bytes. All methods block.

    Each raises ObjectStoreUnavailable or ObjectStoreRefused; those that read this host's disk, DiskFailed.
    """

    @property
    def peer(self) -> Peer:
        """The store as a source of chunks."""

    def keep_files(self, files: Sequence[FileEntry]) -> None:
        """Put the bytes of files held here, and their chunk lists, where the store lacks them."""

    def keep_version(self, manifest: Manifest, digest: Digest, data: bytes) -> None:
        """Put the manifest, then claim its number: the last step, so a claimed version is whole.

        Raises VersionConflict: the number is claimed for another content, by another writer.
        """

    def has_version(self, name: ModelName, version: Version, digest: Digest) -> bool:
        """Whether this number was claimed for exactly this manifest."""

    def remove(self, name: ModelName, version: Version, unreferenced: Sequence[Digest]) -> None:
        """Forget a version and the objects that no retained one refers to; the claim goes last."""

    def manifest(self, digest: Digest) -> Manifest | None:
        """A manifest as the store has it, verified; None if it has none."""
