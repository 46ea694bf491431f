"""Received chunks on their way into a file: written, counted, fed to the file's own digest, by whoever received them.

A large file has several receivers, so that one waits for the disk while another receives; a thread that wrote for them
made a fresh pull slower (decision 22). Buffers go round. This file must not know where chunks come from, nor how they
are written.
"""

from __future__ import annotations

import contextlib
import queue

from modelsync.core.manifest import FileEntry
from modelsync.core.transfer.chunk_map import ChunkMap
from modelsync.edges.disk.chunk_writer import ChunkWriter
from modelsync.edges.disk.direct import buffer_of
from modelsync.edges.disk.partial_file import RunningHash
from modelsync.edges.pull.attempt import Attempt
from modelsync.ports import Progress


class Placing:
    """One file's way from buffers to the disk, for any number of threads. ``put`` and ``copy`` raise OSError.

    Args:
        verified: grows when a chunk is written, not sooner: what it holds is served to others.
    """

    def __init__(
        self, entry: FileEntry, writer: ChunkWriter, whole: RunningHash, verified: ChunkMap, progress: Progress
    ) -> None:
        self._entry = entry
        self._writer = writer
        self._whole = whole
        self._verified = verified
        self._progress = progress
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()

    def buffer(self) -> memoryview:
        """One to fill: for ``put`` or ``give_back``."""
        with contextlib.suppress(queue.Empty):
            return self._free.get_nowait()
        return buffer_of(self._writer.buffer_bytes)

    def give_back(self, buffer: memoryview) -> None:
        """Not needed any more."""
        self._free.put(buffer)

    def put(self, index: int, buffer: memoryview, attempt: Attempt | None = None) -> None:
        """A chunk's verified bytes, at the beginning of a buffer.

        Args:
            attempt: where to note that the chunk is delivered.
        """
        offset, size = self._entry.chunk_range(index)
        self._writer.write(buffer, size, offset)
        if self._verified.add(index):  # else a second request for it was quicker
            self._progress.add(done_bytes=size)
        if attempt is not None:
            attempt.delivered.append(index)
        self._whole.feed(offset, buffer[:size])
        self.give_back(buffer)

    def copy(self, index: int, data: memoryview, attempt: Attempt | None) -> None:
        """As ``put``, of bytes that lie in memory of another kind."""
        buffer = self.buffer()
        buffer[: len(data)] = data
        self.put(index, buffer, attempt)
