"""Verified chunks on their way into a file: written, counted, fed to the file's own digest.

Beside whoever receives or reads them, two threads do that for a large file, one the writing and one the digest, so that
the disk is waited for while the next chunk comes; buffers go round. Small files have no threads: what hands a chunk
over writes it. This file must not know where chunks come from, nor how they are written.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from modelsync.core.manifest import FileEntry
from modelsync.core.transfer.chunk_map import ChunkMap
from modelsync.edges.disk.chunk_writer import ChunkWriter
from modelsync.edges.disk.direct import buffer_of
from modelsync.edges.disk.partial_file import RunningHash
from modelsync.edges.pull.attempt import Attempt
from modelsync.ports import Progress

_SPARE = 6
"""Chunks between the threads of one file, so that neither waits for another for long."""


@dataclass(frozen=True, slots=True)
class _Verified:
    index: int
    buffer: memoryview
    attempt: Attempt | None
    written: bool


class Placing:
    """One file's way from buffers to the disk. ``buffer``, ``put`` and ``settle`` raise OSError: a write has failed.

    Args:
        verified: grows when a chunk is written, not sooner: what it holds is served to others.
        threads: whether to write beside the caller.
    """

    def __init__(
        self,
        entry: FileEntry,
        writer: ChunkWriter,
        whole: RunningHash,
        verified: ChunkMap,
        progress: Progress,
        *,
        threads: bool,
    ) -> None:
        self._entry = entry
        self._writer = writer
        self._whole = whole
        self._verified = verified
        self._progress = progress
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._guard = threading.Lock()
        self._may_be_made = _SPARE
        self._made = 0
        self._fault: BaseException | None = None
        self._to_write: queue.SimpleQueue[_Verified | threading.Event | None] = queue.SimpleQueue()
        self._to_hash: queue.SimpleQueue[_Verified | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=run, name=name, daemon=True)
            for run, name in ((self._write_all, "write-chunks"), (self._hash_all, "hash-file"))
            if threads
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Wait until nothing is written or read any more."""
        if self._threads:
            self._to_write.put(None)
        for thread in self._threads:
            thread.join()

    @contextlib.contextmanager
    def filling(self) -> Iterator[None]:
        """While a thread fills buffers, one at a time: it will not wait because others hold theirs for long."""
        with self._guard:
            self._may_be_made += 1
        try:
            yield
        finally:
            with self._guard:
                self._may_be_made -= 1

    def buffer(self) -> memoryview:
        """One to fill: for ``put`` or ``give_back``."""
        self._require_sound()
        with contextlib.suppress(queue.Empty):
            return self._free.get_nowait()
        with self._guard:
            make = self._made < self._may_be_made or not self._threads
            self._made += make
        found = buffer_of(self._writer.buffer_bytes) if make else self._free.get()
        self._require_sound()
        return found

    def give_back(self, buffer: memoryview) -> None:
        """Not needed after all."""
        self._free.put(buffer)

    def put(self, index: int, buffer: memoryview, attempt: Attempt | None = None, *, written: bool = False) -> None:
        """A chunk's verified bytes, at the beginning of a buffer.

        Args:
            attempt: where to note that the chunk is delivered.
            written: the file has these bytes already: it is only counted.
        """
        item = _Verified(index, buffer, attempt, written)
        if self._threads:
            self._to_write.put(item)
            return
        self._write(item)
        self._feed(item)
        self._free.put(buffer)

    def copy(self, index: int, data: memoryview, attempt: Attempt | None) -> None:
        """As ``put``, of bytes that lie in memory of another kind."""
        buffer = self.buffer()
        buffer[: len(data)] = data
        self.put(index, buffer, attempt)

    def settle(self) -> None:
        """Return when all that was put before is written and counted."""
        if self._threads:
            written = threading.Event()
            self._to_write.put(written)
            written.wait()
        self._require_sound()

    def _require_sound(self) -> None:
        if self._fault is not None:
            raise self._fault

    # --- in threads of their own --------------------------------------------------------------------------------------

    def _write_all(self) -> None:
        while (item := self._to_write.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
                continue
            try:
                if self._fault is None:
                    self._write(item)
            except BaseException as error:  # whoever fills the next buffer, or settles, raises it
                self._fault = error
            self._to_hash.put(item)
        self._to_hash.put(None)

    def _hash_all(self) -> None:
        while (item := self._to_hash.get()) is not None:
            try:
                if self._fault is None:
                    self._catch_up(item.index)
                    self._feed(item)
            except BaseException as error:
                self._fault = error
            self._free.put(item.buffer)

    def _write(self, item: _Verified) -> None:
        offset, size = self._entry.chunk_range(item.index)
        if not item.written:
            self._writer.write(item.buffer, size, offset)
        if self._verified.add(item.index):  # else a second request for it was quicker
            self._progress.add(done_bytes=size)
        if item.attempt is not None:
            item.attempt.delivered.append(item.index)

    def _feed(self, item: _Verified) -> None:
        offset, size = self._entry.chunk_range(item.index)
        self._whole.feed(offset, item.buffer[:size])

    def _catch_up(self, index: int) -> None:
        offset, position = self._entry.chunk_range(index)[0], self._whole.position
        if position < offset and self._verified.covers(position, offset):
            self._whole.catch_up(self._writer.read, offset)
