"""The file that an object grows in, and what of it is right already. PROTOCOL.md section 5, steps 1 and 2.

This file alone decides what an interrupted pull leaves behind is worth. It must not know where the bytes come from.
Every function raises OSError; the caller translates.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from blake3 import blake3

from modelsync.core.ids import Digest
from modelsync.core.manifest import CHUNK_BYTES, FileEntry
from modelsync.edges.disk import durable
from modelsync.edges.disk.direct import buffer_of

WRITE_BYTES = 256 << 10
"""Of one pwrite(2). 1 MiB at once the kernel puts into one large folio, which on a virtual machine is memory that the
host has taken back: up to 2.8 s for 1 GiB, against 0.6 s in pieces that recycled pages serve. In pieces of 64 KiB a
write costs the processor a quarter more (decision 25)."""

Read = Callable[[memoryview, int], int]
"""Into a buffer from an offset of the file: how many bytes. Raises OSError."""


def reader(descriptor: int) -> Read:
    """Reads of a file, through the page cache."""
    return lambda into, offset: os.preadv(descriptor, [into], offset)


def open_partial(path: Path, size_bytes: int) -> int:
    """Open the file that an object grows in, new or as an earlier try left it. Raises OSError."""
    descriptor = _reopened(path)
    if descriptor is None:
        descriptor = durable.create_file(path, 0o600)
    try:
        found_bytes = os.fstat(descriptor).st_size
        if (
            size_bytes < found_bytes < size_bytes + CHUNK_BYTES
        ):  # the zeros after a last chunk that was written directly
            os.ftruncate(descriptor, size_bytes)
        elif size_bytes != found_bytes:
            os.ftruncate(descriptor, 0)
            if size_bytes > CHUNK_BYTES:  # for one chunk it only gives the fsync an extent to convert
                os.posix_fallocate(descriptor, 0, size_bytes)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _reopened(path: Path) -> int | None:
    try:
        reader = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if os.fstat(reader).st_nlink != 1:  # an object of that name was set aside, or is: never written through
            os.unlink(path)
            return None
        os.fchmod(reader, 0o600)  # the earlier try may have died just before the end, when it was read-only already
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    finally:
        os.close(reader)


def verified_chunks(
    descriptor: int, read: Read, entry: FileEntry, chunks: Sequence[Digest], go_on: Callable[[], None]
) -> set[int]:
    """Which chunks of a partial file are right already. Rehashing needs no journal that could itself be torn.

    Args:
        go_on: called before each chunk; what it raises ends this.
    Raises: OSError.
    """
    verified: set[int] = set()
    buffer = buffer_of(min(entry.chunk_bytes, entry.size_bytes) or 1)
    position = 0
    while (found := _next_data(descriptor, position)) is not None and found < entry.size_bytes:
        go_on()
        index = found // entry.chunk_bytes
        offset, size = entry.chunk_range(index)
        data = buffer[:size]
        if read(data, offset) == size and blake3(data).digest() == chunks[index].raw:
            verified.add(index)
        position = offset + size
    return verified


def _next_data(descriptor: int, position: int) -> int | None:
    try:
        return os.lseek(descriptor, position, os.SEEK_DATA)  # preallocated and never written: skipped
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write every byte at an offset; pwrite(2) may take fewer than it is given."""
    while data:
        size = os.pwrite(descriptor, data[:WRITE_BYTES], offset)
        data, offset = data[size:], offset + size


class RunningHash:
    """The digest of a whole file, fed with what arrives in order while it is hot; the rest is read at the end.

    Several threads may feed it, each its own range; a range that does not come next is left to the end.
    """

    def __init__(self) -> None:
        self._hasher = blake3()
        self._guard = threading.Lock()
        self.position = 0

    def feed(self, offset: int, data: memoryview) -> None:
        """Verified bytes at an offset of the file."""
        with self._guard:
            if offset == self.position:
                self._hasher.update(data)
                self.position += len(data)

    def catch_up(self, read: Read, offset: int) -> None:
        """Read what lies before an offset and was not fed; the caller knows that it is right. Raises OSError."""
        buffer = buffer_of(CHUNK_BYTES)
        with self._guard:
            while self.position < offset:
                size = read(buffer[: offset - self.position], self.position)
                if not size:
                    return
                self._hasher.update(buffer[:size])
                self.position += size

    def read_rest(self, read: Read) -> Digest:
        """Read what was not fed, and the digest of it all. Raises OSError."""
        buffer = buffer_of(CHUNK_BYTES)
        with self._guard:
            while size := read(buffer, self.position):
                self._hasher.update(buffer[:size])
                self.position += size
            return Digest(self._hasher.digest())


class HashBeside(threading.Thread):
    """Finish a file's digest while another thread waits for its fsync."""

    def __init__(self, read: Read, whole: RunningHash) -> None:
        super().__init__(name="hash-beside", daemon=True)
        self._read = read
        self._whole = whole
        self._digest: Digest | None = None
        self._error: OSError | None = None
        self.start()

    def run(self) -> None:
        try:
            self._digest = self._whole.read_rest(self._read)
        except OSError as error:
            self._error = error

    def result(self) -> Digest:
        self.join()
        if self._error is not None:
            raise self._error
        assert self._digest is not None, "the thread ends with a digest or an error"
        return self._digest
