"""Reads a version's bytes again, a block at a time and no faster than it may: what disks do to files unasked.

What is damaged is set aside, so that it is neither served to a peer nor linked into a new tree. The tree that holds it
stays until the good bytes are here: an application with a flipped bit is better off than one without its model.
"""

from __future__ import annotations

import threading
from pathlib import Path

from blake3 import blake3

from modelsync.core.ids import Digest, ModelName
from modelsync.core.manifest import FileEntry, Manifest
from modelsync.edges.disk.durable import local_faults
from modelsync.edges.disk.store import Store
from modelsync.edges.pull.rate_limit import RateLimiter
from modelsync.ports import Progress

BLOCK_BYTES = 1 << 20


class StoreCheck:
    """Implements ports.BytesCheck."""

    def __init__(self, store: Store, limiter: RateLimiter) -> None:
        self._store = store
        self.limiter = limiter
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def check(
        self, manifest: Manifest, name: ModelName, digest: Digest, progress: Progress, *, set_aside: bool = True
    ) -> list[str]:
        """The paths whose bytes are damaged or gone. Raises DiskFailed."""
        tree = self._store.tree_path(name, digest)
        return [
            entry.path
            for entry in manifest.files
            if not self._is_good(entry, tree / entry.path, progress, set_aside=set_aside)
        ]

    def _is_good(self, entry: FileEntry, in_tree: Path, progress: Progress, *, set_aside: bool) -> bool:
        path = self._store.object_path(entry.digest)
        if not path.exists():
            return False
        if not self._matches(path, entry.digest, progress):
            if set_aside:
                self._store.set_aside(path)
            return False
        copied = in_tree.exists() and not in_tree.samefile(path)  # an executable file is a copy, not a link
        return not copied or self._matches(in_tree, entry.digest, Progress())

    def _matches(self, path: Path, digest: Digest, progress: Progress) -> bool:
        hasher, buffer = blake3(), bytearray(BLOCK_BYTES)
        view = memoryview(buffer)
        with local_faults(path, "read"), path.open("rb", buffering=0) as file:
            while not self._stopped.is_set() and (size := file.readinto(buffer)):
                hasher.update(view[:size])
                progress.add(done_bytes=size)
                self.limiter.take(size, self._stopped)
        return self._stopped.is_set() or hasher.digest() == digest.raw
