"""Chunks of old versions on their way into a file: one thread reads and hashes, another writes; buffers go round.

No chunk is verified by itself here: the file's own digest runs over every byte anyway and proves them all at once.
This file must not know where the bytes lie, nor what happens when they turn out wrong.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator

from modelsync.edges.disk.direct import buffer_of
from modelsync.edges.pull.chunk_stream import FilePull

THREAD_FROM_BYTES = 64 << 20
"""Files of so many bytes are written beside who reads; below, it would save milliseconds."""
_WRITING_FILES = 4
"""Files that have such a thread at once; others write what they read, in one buffer: the disk is busy then anyway, and
memory stays flat however many pulls there are."""
_BUFFERS = 7
"""Of one file's thread, so that neither side waits for the other for long."""


class Slots:
    """The threads that all pulls of a node may have for writing."""

    def __init__(self, files: int = _WRITING_FILES) -> None:
        self._free = threading.BoundedSemaphore(files)

    @contextlib.contextmanager
    def copying(self, pull: FilePull) -> Iterator[Copying]:
        """All that was put is written when this ends. Raises OSError: a write has failed."""
        beside = pull.entry.size_bytes >= THREAD_FROM_BYTES and self._free.acquire(blocking=False)
        copying = Copying(pull, beside=beside)
        try:
            yield copying
        finally:
            copying.close()
            if beside:
                self._free.release()
        copying.require_sound()


class Copying:
    """One file's way from old versions to the disk, for one thread. Methods raise OSError: a write has failed."""

    def __init__(self, pull: FilePull, *, beside: bool) -> None:
        self._pull = pull
        self._fault: BaseException | None = None
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        for _ in range(_BUFFERS if beside else 1):
            self._free.put(buffer_of(pull.writer.buffer_bytes))
        self._to_write: queue.SimpleQueue[tuple[int, memoryview] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="write-chunks", daemon=True) if beside else None
        if self._thread:
            self._thread.start()

    def close(self) -> None:
        """Return when nothing is written any more."""
        if self._thread:
            self._to_write.put(None)
            self._thread.join()

    def buffer(self) -> memoryview:
        """One to fill: for ``put`` or ``give_back``."""
        found = self._free.get()
        self.require_sound()
        return found

    def give_back(self, buffer: memoryview) -> None:
        """Not needed after all."""
        self._free.put(buffer)

    def put(self, index: int, buffer: memoryview, *, written: bool) -> None:
        """A chunk's bytes, at the beginning of a buffer.

        Args:
            written: the file has them already: they are only hashed.
        """
        offset, size = self._pull.entry.chunk_range(index)
        if self._thread and not written:
            self._to_write.put((index, buffer))  # it goes round only by way of ``buffer``: not before it is hashed
            self._hash(offset, buffer[:size])
            return
        if not written:
            self._pull.writer.write(buffer, size, offset)
        self._hash(offset, buffer[:size])
        self._free.put(buffer)

    def _hash(self, offset: int, data: memoryview) -> None:
        whole = self._pull.whole
        if whole.position < offset and self._pull.verified.covers(whole.position, offset):
            whole.catch_up(self._pull.writer.read, offset)  # what came from peers
        whole.feed(offset, data)

    def require_sound(self) -> None:
        if self._fault is not None:
            raise self._fault

    def _write_all(self) -> None:
        """In a thread of its own."""
        while (item := self._to_write.get()) is not None:
            index, buffer = item
            offset, size = self._pull.entry.chunk_range(index)
            try:
                if self._fault is None:
                    self._pull.writer.write(buffer, size, offset)
            except BaseException as error:  # whoever takes the next buffer, or ends, raises it
                self._fault = error
            self._free.put(buffer)
