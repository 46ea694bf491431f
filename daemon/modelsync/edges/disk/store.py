"""The state directory: objects by digest, manifests, version trees, and what keeps them whole. PROTOCOL.md section 3.

This file alone decides where things lie in STATE. It must not know which versions are wanted (retention is handed in)
nor how bytes arrive (ingest and fetch hand it finished temporary files).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from blake3 import blake3

from modelsync.core import manifest as manifests
from modelsync.core.errors import DigestMismatch, DiskFull, LayoutCorrupt
from modelsync.core.ids import Digest, ModelName
from modelsync.core.manifest import FileEntry, Manifest
from modelsync.edges.disk import durable, state_lock
from modelsync.edges.disk.durable import local_faults
from modelsync.edges.disk.garbage import KINDS, Garbage
from modelsync.edges.disk.partial_maps import PartialMaps
from modelsync.ports import HeldPart

FORMAT = "1"
BATCH_FILES = 64
"""From here on one syncfs replaces an fsync for each file."""
RESERVE_BYTES = 64 << 20
"""Left free by the preflight: room for the catalog, logs and the file system's own metadata."""


class Store:
    """One node's STATE directory. Its methods block; call them from a thread."""

    def __init__(self, state_dir: Path) -> None:
        self.root = state_dir
        self.objects = state_dir / "objects" / "b3"
        self.manifests = state_dir / "manifests"
        self.trees = state_dir / "store"
        self.partial = state_dir / "partial"
        self.tmp = state_dir / "tmp"
        self.quarantine = state_dir / "quarantine"
        self.partials = PartialMaps()
        self._lock_descriptor = -1
        self._guard = threading.Lock()
        self._leases: dict[Digest, int] = {}

    # --- opening ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Lock the directory, check its format, make what is missing, sweep temporaries.

        Raises: StateInUse (nothing was written), LayoutCorrupt (a later format), DiskFull, DiskFailed.
        """
        with local_faults(self.root, "open the state directory"):
            durable.make_directories(self.root)
            self.lock()
            try:
                self._check_format()
                for directory in (self.objects, self.manifests, self.trees, self.partial, self.tmp, self.quarantine):
                    durable.make_directories(directory)
                self._make_shards()
                self._sweep()
                self._settle_names()
            except BaseException:
                self.close()
                raise

    def lock(self) -> None:
        """Hold the directory until ``close`` or death. Raises StateInUse: another daemon holds it."""
        self._lock_descriptor = state_lock.hold(self.root)

    def close(self) -> None:
        """Release the lock; the kernel does the same when the process dies."""
        if self._lock_descriptor >= 0:
            os.close(self._lock_descriptor)
            self._lock_descriptor = -1

    def _check_format(self) -> None:
        path = self.root / "format"
        if not path.exists():
            durable.replace_file(path, FORMAT.encode())
        found = path.read_bytes()[:80].decode(errors="replace").strip()
        if found != FORMAT:
            reason = f"its format is {found!r}, this release writes {FORMAT}: run the release that wrote it"
            raise LayoutCorrupt(path=str(path), reason=reason)

    def _make_shards(self) -> None:
        # All 256 at once, so that no later publish pays for a new directory and its parent's fsync.
        absent = {f"{shard:02x}" for shard in range(256)} - set(os.listdir(self.objects))
        for name in sorted(absent):
            os.mkdir(self.objects / name, 0o755)
        if absent:
            durable.fsync_directory(self.objects)

    def _sweep(self) -> None:
        for name in os.listdir(self.tmp):
            _remove(self.tmp / name)
        for directory in (self.root, self.manifests, self.root / "catalog", self.root / "active"):
            for name in os.listdir(directory) if directory.is_dir() else ():
                if name.endswith(".tmp"):
                    _remove(directory / name)
        for name in os.listdir(self.partial):
            if (self.objects / name[:2] / name).exists():
                _remove(self.partial / name)  # it got its name, and the process died before this one went

    def _settle_names(self) -> None:
        # A process may be killed between giving a name and making it durable. This one would take a name that it
        # finds for a durable one, so those that more is built upon are made durable once more, at every start.
        models = [self.trees / name for name in os.listdir(self.trees)]
        for directory in (*models, self.trees, self.manifests, self.root):
            durable.fsync_directory(directory)

    # --- objects ----------------------------------------------------------------------------------------------------

    def object_path(self, digest: Digest) -> Path:
        """Where a file's bytes lie, whether held or not."""
        return self.objects / digest.hex[:2] / digest.hex

    def manifest_path(self, digest: Digest) -> Path:
        return self.manifests / digest.hex

    def partial_path(self, digest: Digest) -> Path:
        return self.partial / digest.hex

    def has(self, digest: Digest) -> bool:
        return self.object_path(digest).exists()

    def find(self, digest: Digest) -> Path | None:
        """A held object, manifest or chunk list, for serving."""
        for path in (self.object_path(digest), self.manifest_path(digest)):
            if path.exists():
                return path
        return None

    def part(self, digest: Digest) -> HeldPart | None:
        """What is verified of an object that is still being pulled, for serving."""
        return self.partials.find(digest)

    def new_temporary(self, prefix: str) -> Path:
        """A name in tmp/ that nobody else uses; nothing is created."""
        return self.tmp / durable.temporary_name(prefix)

    def adopt(self, temporary: Path, digest: Digest, *, sync: bool = True) -> None:
        """Give verified, fsynced bytes their name (step 3 of an activation). Raises OSError.

        ``sync`` False: the caller makes a batch durable with one barrier before anything refers to it.
        """
        target = self.object_path(digest)
        with contextlib.suppress(FileExistsError):  # then, too, it is synced: who linked it may have died before that
            os.link(temporary, target)
        if sync:
            durable.fsync_directory(target.parent)
        os.unlink(temporary)

    def put_document(self, data: bytes) -> Digest:
        """Keep a manifest or chunk list under its digest, durably. Raises DiskFull, DiskFailed."""
        digest = Digest(blake3(data).digest())
        path = self.manifest_path(digest)
        if not path.exists():
            durable.replace_file(path, data, 0o444)
        return digest

    def read_document(self, digest: Digest) -> bytes | None:
        """A held manifest or chunk list, checked; a damaged one is set aside and counts as not held."""
        path = self.manifest_path(digest)
        with local_faults(path, "read"):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                return None
        if blake3(data).digest() != digest.raw:
            self.set_aside(path)
            return None
        return data

    def manifest(self, digest: Digest) -> Manifest | None:
        """A held manifest, parsed. Raises MalformedMessage, DiskFailed."""
        data = self.read_document(digest)
        return manifests.decode(data) if data is not None else None

    def chunk_digests(self, entry: FileEntry) -> tuple[Digest, ...] | None:
        """A file's chunk digests; None if its chunk list is not held here. Raises MalformedMessage."""
        if entry.chunk_list is None:
            return entry.chunks
        data = self.read_document(entry.chunk_list)
        return manifests.decode_chunk_list(data, entry) if data is not None else None

    def missing(self, version: Manifest) -> list[FileEntry]:
        """The files of a version whose bytes are not held, each digest once."""
        absent: dict[Digest, FileEntry] = {}
        for entry in version.files:
            if entry.digest not in absent and not self.has(entry.digest):
                absent[entry.digest] = entry
        return list(absent.values())

    def require_space(self, needed_bytes: int) -> None:
        """Preflight before a transfer. Raises DiskFull, DiskFailed."""
        with local_faults(self.root, "statvfs"):
            free = durable.free_bytes(self.root)
        if needed_bytes + RESERVE_BYTES > free:
            raise DiskFull(path=str(self.root), needed_bytes=needed_bytes + RESERVE_BYTES, free_bytes=free)

    def capacity_bytes(self) -> int:
        """The size of the file system: this host's share of what the fleet holds. 0 where it does not answer."""
        try:
            info = os.statvfs(self.root)
        except OSError:
            return 0
        return info.f_blocks * info.f_frsize

    def set_aside(self, path: Path) -> None:
        """Move a damaged file to quarantine/ for a person to look at; at most 100 are kept. Raises DiskFailed."""
        with local_faults(path, "quarantine"):
            kept = sorted(os.scandir(self.quarantine), key=lambda entry: entry.stat(follow_symlinks=False).st_mtime)
            for entry in kept[: max(0, len(kept) - 99)]:
                _remove(Path(entry.path))
            os.rename(path, self.quarantine / durable.temporary_name(path.name).removesuffix(".tmp"))

    def new_staging(self) -> Path:
        """A fresh directory in tmp/ for one upload; the caller removes it. Raises DiskFull, DiskFailed."""
        path = self.new_temporary("upload")
        with local_faults(path, "mkdir"):
            os.mkdir(path, 0o700)
        return path

    # --- trees ------------------------------------------------------------------------------------------------------

    def tree_path(self, name: ModelName, digest: Digest) -> Path:
        return self.trees / name / digest.hex

    def build_tree(self, version: Manifest, digest: Digest) -> Path:
        """Lay out a version's tree from held objects: steps 4 and 5 of an activation.

        Raises: DiskFull, DiskFailed; LayoutCorrupt if an object that should be held is not.
        """
        target = self.tree_path(version.model, digest)
        if target.is_dir():
            return target
        temporary = self.new_temporary(f"tree-{version.model}")
        with local_faults(target, "build the version's tree"):
            try:
                if len(version.files) < BATCH_FILES:
                    for directory in self._fill_tree(temporary, version, sync=True):  # (4)
                        durable.fsync_directory(directory)
                else:
                    with durable.filesystem_barrier(self.tmp) as barrier:
                        self._fill_tree(temporary, version, sync=False)  # (4)
                        barrier()
                durable.make_directories(target.parent)
                os.rename(temporary, target)  # (5)
            except BaseException:
                _remove(temporary)
                raise
            durable.fsync_directory(target.parent)
        return target

    def _fill_tree(self, root: Path, version: Manifest, *, sync: bool) -> list[Path]:
        """Lay out the files; returns the directories from the leaves up."""
        os.mkdir(root, 0o755)
        directories = {root}
        for entry in version.files:
            path = root / entry.path
            absent = [parent for parent in path.parents if parent not in directories and parent.is_relative_to(root)]
            for parent in reversed(absent):
                os.mkdir(parent, 0o755)
            directories.update(absent)
            self._place(entry, path, sync=sync)
        return sorted(directories, key=lambda path: len(path.parts), reverse=True)

    def _place(self, entry: FileEntry, path: Path, *, sync: bool) -> None:
        source = self.object_path(entry.digest)
        try:
            if entry.mode == 0o755:
                _copy_file(source, path, 0o555, sync=sync)  # a link would share the object's mode
                return
            os.link(source, path)
        except FileNotFoundError as error:
            raise LayoutCorrupt(path=str(source), reason="the object is gone; it will be fetched again") from error
        except OSError as error:
            if error.errno not in (errno.EMLINK, errno.EXDEV):
                raise
            _copy_file(source, path, 0o444, sync=sync)

    def tree_is_whole(self, version: Manifest, digest: Digest) -> bool:
        """Whether a tree has every file at its size: what a start checks before it trusts what it finds."""
        root = self.tree_path(version.model, digest)
        try:
            return all((root / entry.path).stat().st_size == entry.size_bytes for entry in version.files)
        except OSError:
            return False

    def discard_tree(self, name: ModelName, digest: Digest) -> None:
        """Remove a tree that is not whole, so that it is built again from verified objects. Raises DiskFailed."""
        aside = self.new_temporary("broken")
        with local_faults(self.trees, "discard a tree"), contextlib.suppress(FileNotFoundError):
            os.rename(self.tree_path(name, digest), aside)
            _remove(aside)

    def verify_tree(self, version: Manifest, digest: Digest) -> None:
        """Read every byte of a tree again. Raises DigestMismatch, DiskFailed."""
        root = self.tree_path(version.model, digest)
        for entry in version.files:
            actual = hash_file(root / entry.path)
            if actual != entry.digest:
                raise DigestMismatch(
                    path=str(root / entry.path),
                    chunk=None,
                    expected=str(entry.digest),
                    actual=str(actual),
                    source="disk",
                )

    def discard_damaged(self, version: Manifest, digest: Digest) -> list[str]:
        """Set aside the objects of a version that no longer match, and then its tree, so that it is pulled again.

        Returns: the paths of the damaged files. Raises DiskFailed.
        """
        damaged = []
        for entry in version.files:
            path = self.object_path(entry.digest)
            if path.exists() and hash_file(path) != entry.digest:
                self.set_aside(path)
                damaged.append(entry.path)
        if damaged:
            self.discard_tree(version.model, digest)
        return damaged

    # --- garbage ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def leased(self, digests: frozenset[Digest]) -> Iterator[None]:
        """Keep objects from garbage collection while a publish or pull is putting a version together."""
        with self._guard:
            for digest in digests:
                self._leases[digest] = self._leases.get(digest, 0) + 1
        try:
            yield
        finally:
            with self._guard:
                for digest in digests:
                    self._leases[digest] -= 1
                    if not self._leases[digest]:
                        del self._leases[digest]

    def collect(
        self,
        keep: Mapping[ModelName, frozenset[Digest]],
        shares: Mapping[Digest, frozenset[Digest]] = MappingProxyType({}),
        *,
        dry_run: bool = False,
        at_most: int | None = None,
    ) -> dict[str, int]:
        """Remove trees, manifests, objects and half-pulled files that no kept version refers to; views go first.

        Args:
            keep: manifest digests by model. A model that is not named is one that this node forgot (its catalog file
                was lost), not one that nobody wants: it keeps all its trees.
            shares: of further manifests, those of their objects that are kept, without a tree.
            at_most: stop after so many, of all kinds together; the rest is left to the next call.
        Returns:
            What was (or with ``dry_run`` would be) removed: trees, documents, objects, size_bytes.
        Raises: DiskFailed; MalformedMessage if a kept manifest cannot be read (nothing is removed then).
        """
        removed = dict.fromkeys((*KINDS, "size_bytes"), 0)
        with local_faults(self.root, "collect garbage"), self._guard:
            garbage = Garbage(self.root, keep, shares, frozenset(self._leases), self.manifest)
            for kind, path in itertools.islice(garbage.found(shared=dry_run), at_most):
                removed[kind] += 1
                if kind == "objects":
                    removed["size_bytes"] += path.stat(follow_symlinks=False).st_size
                if not dry_run:
                    self._discard(path)
        return removed

    def _discard(self, path: Path) -> None:
        if path.parent == self.partial:
            self.partials.lost(path)
        if path.is_dir():
            aside = self.new_temporary("gone")
            os.rename(path, aside)
            path = aside
        _remove(path)


def hash_file(path: Path) -> Digest:
    """BLAKE3 of a file, read through a fixed buffer so that its pages are not counted as this process's memory.

    Raises: DiskFailed.
    """
    hasher, buffer = blake3(), bytearray(1 << 20)
    view = memoryview(buffer)
    with local_faults(path, "read"), open(path, "rb", buffering=0) as file:
        while size := file.readinto(buffer):
            hasher.update(view[:size])
    return Digest(hasher.digest())


def _copy_file(source: Path, target: Path, mode: int, *, sync: bool) -> None:
    shutil.copyfile(source, target)
    descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fchmod(descriptor, mode)
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)
