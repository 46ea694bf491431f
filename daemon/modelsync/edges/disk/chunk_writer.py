"""Writing verified chunks of one partial file, past the page cache where the file system takes that (O_DIRECT).

A direct write costs the processor next to nothing and evicts nobody's pages; ``past_cache`` in core says which
files are. Where the file system refuses, at the opening (tmpfs) or at the first write (some FUSE), the file is
written through the page cache like any other. This file must not know where bytes come from, nor who verified them.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path

from modelsync.core import past_cache
from modelsync.edges.disk import durable, partial_file
from modelsync.edges.disk.direct import told_of

_WRITEBACK_BYTES = 32 << 20
_REFUSALS = (errno.EINVAL, errno.EOPNOTSUPP)


class ChunkWriter:
    """One partial file under way, by its descriptor, which stays the caller's. Methods raise OSError.

    Args:
        from_bytes: files of so many bytes are written directly; 0: none.
        refused: told why a file system that did not say so takes no direct writes.
    """

    def __init__(
        self,
        path: Path,
        descriptor: int,
        size_bytes: int,
        chunk_bytes: int,
        *,
        from_bytes: int = 0,
        refused: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._descriptor = descriptor
        self._size_bytes = size_bytes
        self._refused = refused
        block = past_cache.block_bytes(
            size_bytes=size_bytes,
            chunk_bytes=chunk_bytes,
            from_bytes=from_bytes,
            page_bytes=mmap.PAGESIZE,
            preferred_bytes=os.fstat(descriptor).st_blksize,
            told=told_of(descriptor) if from_bytes else None,
        )
        self._dirty_from = self._dirty_to = 0
        self._block = block or mmap.PAGESIZE
        self._direct = None if block is None else self._opened(path)
        self._past_cache = self._direct is not None
        self.buffer_bytes = min(chunk_bytes, past_cache.padded(size_bytes, self._block))
        """Of the buffers that ``write`` takes."""

    @property
    def past_cache(self) -> bool:
        """Whether chunks are written directly, as far as is known yet."""
        return self._past_cache

    def _opened(self, path: Path) -> int | None:
        """The same file once more: the flag belongs to the opened file, and the first one also reads odd ranges."""
        try:
            return os.open(path, os.O_RDWR | os.O_DIRECT | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            self._refused(f"open: {error.strerror}")
            return None

    def write(self, buffer: memoryview, size_bytes: int, offset: int) -> None:
        """Write the beginning of a buffer at a chunk's offset; what follows in the buffer may be overwritten.

        Args:
            buffer: from ``direct.buffer_of``, of ``buffer_bytes``.
        """
        if self._past_cache:
            end = past_cache.padded(size_bytes, self._block)
            buffer[size_bytes:end] = bytes(end - size_bytes)
            if self._write_direct(buffer[:end], offset):
                return
        partial_file.write_at(self._descriptor, buffer[:size_bytes], offset)
        self._dirtied(offset, offset + size_bytes)

    def _write_direct(self, data: memoryview, offset: int) -> bool:
        assert self._direct is not None
        try:
            while data:
                size = os.pwrite(self._direct, data, offset)
                data, offset = data[size:], offset + size
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            self._past_cache = False
            self._refused(f"write: {error.strerror}")
            return False
        return True

    def read(self, into: memoryview, offset: int) -> int:
        """How many bytes were read back; whole blocks of a file that is written directly come directly, too."""
        direct = self._past_cache and len(into) % self._block == 0 and offset % self._block == 0
        return os.preadv(self._direct if direct and self._direct is not None else self._descriptor, [into], offset)

    def _dirtied(self, offset: int, end: int) -> None:
        """Have write-back begun early, in large pieces where chunks come in order."""
        if offset != self._dirty_to and self._dirty_from < self._dirty_to:
            self._start_writeback()
        if offset != self._dirty_to:
            self._dirty_from = offset
        self._dirty_to = end
        if end - self._dirty_from >= _WRITEBACK_BYTES:
            self._start_writeback()

    def _start_writeback(self) -> None:
        durable.start_writeback(self._descriptor, self._dirty_from, self._dirty_to - self._dirty_from)
        self._dirty_from = self._dirty_to

    def cut(self) -> None:
        """Give the file its size, after the last write and before the fsync."""
        if os.fstat(self._descriptor).st_size > self._size_bytes:
            os.ftruncate(self._descriptor, self._size_bytes)

    def close(self) -> None:
        """After the last write and read."""
        if self._direct is not None:
            os.close(self._direct)
            self._direct, self._past_cache = None, False
