"""Copying a complete source into the store, hashed as it is copied.

This file alone reads the models directory's bytes. It must not decide when a source is complete (core.sources.settle
does) nor which number it gets. A file that is not what the scan saw, before or after, is not ingested: the source
starts again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from blake3 import blake3

from modelsync.core.errors import NotAModel, SourceChanged
from modelsync.core.ids import Digest
from modelsync.core.manifest import CHUNK_BYTES, MAX_INLINE_CHUNKS, FileEntry
from modelsync.edges.disk import durable
from modelsync.edges.disk.durable import local_faults
from modelsync.edges.disk.seed_maps import with_seeds
from modelsync.edges.disk.store import BATCH_FILES, Store
from modelsync.ports import ReceivedFile, SourceFile

_WRITEBACK_BYTES = 32 << 20
"""How much is dirtied before write-back is started: large enough for whole extents, small against a disk's queue."""
_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO)
"""Why a source could not be opened that says nothing about the source: it is tried again."""


class IngestingStore(Store):
    """The store with its ways in: from the models directory and from finished uploads."""

    def ingest(
        self, root: Path, sources: Sequence[SourceFile], bases: Sequence[FileEntry] = ()
    ) -> tuple[FileEntry, ...]:
        """Copy the files of one version into the store; see ``ingest``."""
        return ingest(self, root, sources, bases)

    def take_in(self, received: Sequence[ReceivedFile], bases: Sequence[FileEntry] = ()) -> tuple[FileEntry, ...]:
        """Give uploaded files, verified and durable, their names.

        Raises: SourceChanged: one that was held is not any more; DiskFull, DiskFailed.
        """
        with local_faults(self.root, "make the uploaded files durable"):
            batch = len(received) >= BATCH_FILES
            with durable.filesystem_barrier(self.tmp) as barrier:
                for file in received:
                    if file.path is not None:
                        self.adopt(file.path, file.entry.digest, sync=not batch)
                    elif not self.has(file.entry.digest):
                        raise SourceChanged(path=file.entry.path)
                if batch:
                    barrier()
        entries = sorted((file.entry for file in received), key=lambda entry: entry.path)
        return tuple(_with_chunk_list(self, with_seeds(self, entry, bases)) for entry in entries)

    def survey(self, root: Path) -> tuple[SourceFile, ...]:
        """Every regular file below a directory of our own. Raises NotAModel for anything else that lies there."""
        found = []
        with local_faults(root, "survey"):
            for directory, _, names in os.walk(root):
                for name in names:
                    path = Path(directory) / name
                    found.append(_surveyed(path, str(path.relative_to(root))))
        return tuple(sorted(found, key=lambda item: item.path))


def _surveyed(path: Path, relative: str) -> SourceFile:
    info = os.lstat(path)
    if not stat.S_ISREG(info.st_mode):
        raise NotAModel(path=relative, reason="not a regular file")
    return SourceFile(relative, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino, info.st_mode)


def ingest(
    store: Store, root: Path, sources: Sequence[SourceFile], bases: Sequence[FileEntry] = ()
) -> tuple[FileEntry, ...]:
    """Copy the files of one version into the store.

    Args:
        root: what the paths are relative to.
        sources: as the scan saw them, sorted by path or not.
        bases: the files of the version before, whose holders need not receive what these share with them.
    Raises:
        SourceChanged: a file changed meanwhile; try again when it has settled.
        NotAModel: a file cannot be read as a regular file.
        DiskFull, DiskFailed: the temporaries are removed, nothing is half done.
    """
    store.require_space(sum(source.size_bytes for source in sources))
    ordered = sorted(sources, key=lambda item: item.path)
    staged: list[tuple[Path, FileEntry]] = []
    try:
        with local_faults(store.root, "make the ingested files durable"):
            if len(ordered) < BATCH_FILES:
                _stage_each(store, root, ordered, staged)
            else:
                _stage_batch(store, root, ordered, staged)
    finally:
        for temporary, _ in staged:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
    return tuple(_with_chunk_list(store, with_seeds(store, entry, bases)) for _, entry in staged)


def _stage_each(store: Store, root: Path, sources: Sequence[SourceFile], staged: list[tuple[Path, FileEntry]]) -> None:
    for source in sources:
        staged.append(_copy(store, root, source, sync=True))
    for temporary, entry in staged:
        store.adopt(temporary, entry.digest)


def _stage_batch(store: Store, root: Path, sources: Sequence[SourceFile], staged: list[tuple[Path, FileEntry]]) -> None:
    with durable.filesystem_barrier(store.tmp) as barrier:
        for source in sources:
            staged.append(_copy(store, root, source, sync=False))
        barrier()  # bytes before names
        for temporary, entry in staged:
            store.adopt(temporary, entry.digest, sync=False)
        barrier()


def _with_chunk_list(store: Store, entry: FileEntry) -> FileEntry:
    if len(entry.chunks) <= MAX_INLINE_CHUNKS:
        return entry
    chunk_list = store.put_document(b"".join(chunk.raw for chunk in entry.chunks))
    return replace(entry, chunks=(), chunk_list=chunk_list)


def _copy(store: Store, root: Path, source: SourceFile, *, sync: bool) -> tuple[Path, FileEntry]:
    path = root / source.path
    reader = _open_source(path)
    try:
        _require_unchanged(reader, path, source)
        temporary = store.new_temporary("ingest")
        with local_faults(temporary, "write"):
            writer = durable.create_file(temporary, 0o444)
        try:
            with local_faults(temporary, "ingest"):
                digest, chunks = _copy_bytes(reader, writer, source.size_bytes)
                os.fchmod(writer, 0o444)  # whatever the umask: other users read what `current` holds
                if sync:
                    os.fsync(writer)
            _require_unchanged(reader, path, source)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            os.close(writer)
    finally:
        os.close(reader)
    mode = 0o755 if source.mode & 0o111 else 0o644
    return temporary, FileEntry(source.path, source.size_bytes, mode, digest, chunks=tuple(chunks))


def _open_source(path: Path) -> int:
    # O_NONBLOCK: a FIFO that took the file's place must not hang the daemon; the stat below then refuses it.
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise SourceChanged(path=str(path)) from error
    except OSError as error:
        if error.errno in _OURS:
            raise durable.translated(error, path, "open") from error
        raise NotAModel(path=str(path), reason=f"it cannot be read: {error.strerror}") from error


def _require_unchanged(descriptor: int, path: Path, source: SourceFile) -> None:
    # Size, times and inode together: the scan has already refused links that leave the directory, and a file put in
    # its place since then has another inode.
    info = os.fstat(descriptor)
    seen = (info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)
    if seen != (source.size_bytes, source.mtime_ns, source.ctime_ns, source.inode):
        raise SourceChanged(path=str(path))


def _copy_bytes(reader: int, writer: int, size_bytes: int) -> tuple[Digest, list[Digest]]:
    """Copy, hashing the file and each chunk while they are hot. Raises OSError."""
    if size_bytes > CHUNK_BYTES:
        os.posix_fallocate(writer, 0, size_bytes)
    whole, chunks, offset = blake3(), [], 0
    buffer = bytearray(min(CHUNK_BYTES, max(1, size_bytes)))
    view = memoryview(buffer)
    while size := _fill(reader, view):
        data = view[:size]
        chunks.append(Digest(blake3(data).digest()))
        if size_bytes > CHUNK_BYTES:
            whole.update(data)
        durable.write_all(writer, data)
        offset += size
        if offset % _WRITEBACK_BYTES == 0:
            durable.start_writeback(writer, offset - _WRITEBACK_BYTES, _WRITEBACK_BYTES)
        if offset > size_bytes:
            break  # it grew: the second stat says so
    if size_bytes <= CHUNK_BYTES and len(chunks) == 1:
        return chunks[0], chunks  # one chunk is the whole file: its digest is the file's
    return Digest(whole.digest()), chunks


def _fill(reader: int, view: memoryview) -> int:
    """Read until the buffer is full or the file ends: a short read must not shift the chunk borders."""
    filled = 0
    while filled < len(view) and (size := os.readv(reader, [view[filled:]])):
        filled += size
    return filled
