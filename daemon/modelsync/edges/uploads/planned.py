"""An upload whose chunks are all known beforehand: what is held here is not asked for, what arrives is checked at once.

This file alone decides which of a plan's chunks count as there. Nothing is believed: not the plan about an object that
is held here (its chunks are compared with what was published, or read), not a part file about itself (it is read again
when the upload is opened), not a chunk that arrives. Everything blocks and raises DiskFull, DiskFailed beside what its
docstring says.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

from blake3 import blake3

from modelsync.core.errors import DigestMismatch, NoSuchUpload, UploadIncomplete
from modelsync.core.ids import Digest, ModelName
from modelsync.core.manifest import CHUNK_BYTES
from modelsync.core.uploads import UploadPlan, missing_runs
from modelsync.edges.disk import durable, partial_file
from modelsync.edges.disk.durable import local_faults
from modelsync.edges.disk.ingest import IngestingStore
from modelsync.edges.disk.partial_file import HashBeside, RunningHash
from modelsync.edges.disk.store import BATCH_FILES
from modelsync.edges.pull.old_bytes import HeldChunks
from modelsync.ports import Progress, ReceivedFile

_OPEN_FILES = 16
"""Part files that stay open: chunks come in order, so that more would only be closed later."""
_WRITEBACK_CHUNKS = 32
"""How much is dirtied before write-back is started, as for a pull."""


class PlannedUpload:
    """What has arrived of one plan, by chunk. ``write`` may be called from several threads."""

    def __init__(self, store: IngestingStore, directory: Path, model: ModelName, plan: UploadPlan) -> None:
        self._store = store
        self._directory = directory
        self.model = model
        self.plan = plan
        self.progress = Progress(total_bytes=plan.size_bytes)
        self._flags = bytearray(plan.chunk_count)
        self._held: set[int] = set()
        """Files whose object the store holds."""
        self._guard = threading.Lock()
        self._closed = False
        self._open: OrderedDict[int, int] = OrderedDict()
        self._hashes: dict[int, RunningHash] = {}
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(store.leased(frozenset(file.digest for file in plan.files)))
        with local_faults(directory, "open"):
            self._barrier = self._stack.enter_context(durable.filesystem_barrier(directory))

    def close(self) -> None:
        """Let go of descriptors and leases; what is on disk stays."""
        with self._guard:
            self._closed = True
            self._close_parts()
        self._stack.close()

    def _close_parts(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    # --- what is there -----------------------------------------------------------------------------------------------

    def missing(self) -> list[tuple[int, int]]:
        """The runs of chunks that must still be sent."""
        return missing_runs(self._flags)

    def survey(self, held: HeldChunks) -> None:
        """Find out what need not be sent: held objects, what an earlier try left, chunks of any version held here.

        Raises: DiskFull: the rest would not fit; nothing was asked for yet. DigestMismatch: the plan is not true.
        """
        with self._guard, local_faults(self._directory, "survey an upload"):
            known = dict(held.files())
            absent = [number for number in range(len(self.plan.files)) if not self._holds(number, known)]
            self._reserve(absent)
            for number in absent:
                self._reread(number)
            self._seed(known)
            self.progress.done_bytes = self.plan.size_bytes - self.plan.bytes_of(self.missing())

    def _holds(self, number: int, known: dict[Digest, bytes]) -> bool:
        file = self.plan.files[number]
        self._held.discard(number)
        if not self._store.has(file.digest):
            return False
        first, beyond = file.first_chunk, file.first_chunk + file.chunk_count
        if file.chunk_count > 1:
            chunks = known.get(file.digest)
            if chunks is None:
                chunks = b"".join(_chunks_of(self._store.object_path(file.digest)))
            if chunks != self.plan.chunks[32 * first : 32 * beyond]:
                raise self._untrue(file.path, None, str(file.digest), "other chunks than the plan says")
        self._flags[first:beyond] = b"\x01" * file.chunk_count
        self._held.add(number)
        return True

    def _reserve(self, absent: Sequence[int]) -> None:
        """Have the disk set the space aside before the first byte comes."""
        needed_bytes = 0
        for number in absent:
            path, size_bytes = self._part(number), self.plan.files[number].size_bytes
            allocated = path.stat().st_blocks * 512 if path.exists() else 0
            needed_bytes += max(0, size_bytes - allocated)
        self._store.require_space(needed_bytes)
        for number in absent:
            if self.plan.files[number].size_bytes > CHUNK_BYTES:
                os.close(partial_file.open_partial(self._part(number), self.plan.files[number].size_bytes))

    def _reread(self, number: int) -> None:
        """Count what an earlier try left: read again, so that no journal need be believed."""
        file, path = self.plan.files[number], self._part(number)
        self._flags[file.first_chunk : file.first_chunk + file.chunk_count] = bytes(file.chunk_count)
        if not file.chunk_count or not path.exists() or path.stat().st_size != file.size_bytes:
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            entry, read = self.plan.entry_of(number), partial_file.reader(descriptor)
            for index in partial_file.verified_chunks(descriptor, read, entry, entry.chunks, lambda: None):
                self._flags[file.first_chunk + index] = 1
        finally:
            os.close(descriptor)

    def _seed(self, known: dict[Digest, bytes]) -> None:
        """Copy the chunks that stand in some file held here; each is verified before it is written."""
        wanted: dict[bytes, list[int]] = {}
        if not known:
            return
        for first, beyond in self.missing():
            for chunk in range(first, beyond):
                wanted.setdefault(self.plan.digest_of(chunk), []).append(chunk)
        for base, chunks in known.items():
            found = [(at, chunk) for at in range(len(chunks) // 32) for chunk in wanted.pop(_nth(chunks, at), ())]
            if found:
                with contextlib.suppress(FileNotFoundError), open(self._store.object_path(base), "rb") as source:
                    for at, chunk in found:
                        self._copy(source.fileno(), at * CHUNK_BYTES, chunk)

    def _copy(self, source: int, source_offset: int, chunk: int) -> None:
        number, offset, size = self.plan.place_of(chunk)
        descriptor = self._part_of(number)
        buffer = memoryview(bytearray(size))
        if os.preadv(source, [buffer], source_offset) == size and blake3(buffer).digest() == self.plan.digest_of(chunk):
            partial_file.write_at(descriptor, buffer, offset)
            self._feed(number, offset, buffer)
            self._flags[chunk] = 1

    # --- what arrives ------------------------------------------------------------------------------------------------

    def write(self, chunk: int, data: memoryview) -> None:
        """Check a chunk and put it in its place; one that is there already is let go by.

        Raises: DigestMismatch: nothing was written.
        """
        number, offset, size = self.plan.place_of(chunk)
        expected = self.plan.digest_of(chunk)
        actual = blake3(data).digest()
        if actual != expected:
            raise self._untrue(self.plan.files[number].path, chunk, str(Digest(expected)), str(Digest(actual)))
        with self._guard, local_faults(self._directory, "write"):
            self._require_open()
            if self._flags[chunk]:
                return
            descriptor = self._part_of(number)
            partial_file.write_at(descriptor, data, offset)
            self._feed(number, offset, data)
            self._flags[chunk] = 1
            index = chunk - self.plan.files[number].first_chunk + 1
            if index % _WRITEBACK_CHUNKS == 0:
                span = _WRITEBACK_CHUNKS * CHUNK_BYTES
                durable.start_writeback(descriptor, index * CHUNK_BYTES - span, span)
        self.progress.add(done_bytes=size, wire_bytes=size)

    def _part(self, number: int) -> Path:
        return self._directory / str(number)

    def _part_of(self, number: int) -> int:
        found = self._open.get(number)
        if found is None:
            found = partial_file.open_partial(self._part(number), self.plan.files[number].size_bytes)
            self._open[number] = found
            if len(self._open) > _OPEN_FILES:
                _, oldest = self._open.popitem(last=False)
                os.close(oldest)
        return found

    def _feed(self, number: int, offset: int, data: memoryview) -> None:
        """Of a file of one chunk the chunk's digest is the file's."""
        if self.plan.files[number].chunk_count > 1:
            self._hashes.setdefault(number, RunningHash()).feed(offset, data)

    # --- the end -----------------------------------------------------------------------------------------------------

    def complete(self) -> list[ReceivedFile]:
        """All files, durable and whole, ready to be taken into the store.

        Raises:
            UploadIncomplete: something is missing, perhaps since a held object has been collected.
            DigestMismatch: a file's chunks are right and the file is not: the plan was not true.
        """
        with self._guard, local_faults(self._directory, "complete an upload"):
            self._require_open()
            for number in range(len(self.plan.files)):
                self._look_again(number)
            missing = self.missing()
            if missing:
                raise UploadIncomplete(missing_bytes=self.plan.bytes_of(missing))
            batch = len(self.plan.files) - len(self._held) >= BATCH_FILES
            received = [self._received(number, sync=not batch) for number in range(len(self.plan.files))]
            if batch:
                self._barrier()
            self._close_parts()  # they are the store's from now on, and immutable
            return received

    def _look_again(self, number: int) -> None:
        """A held object may have been collected; a part that an earlier publish took in is held now."""
        file = self.plan.files[number]
        has = self._store.has(file.digest)
        if number in self._held and not has:
            self._held.discard(number)
            self._flags[file.first_chunk : file.first_chunk + file.chunk_count] = bytes(file.chunk_count)
        elif number not in self._held and has and not self._part(number).exists():
            self._held.add(number)

    def _received(self, number: int, *, sync: bool) -> ReceivedFile:
        entry = self.plan.entry_of(number)
        if number in self._held:
            return ReceivedFile(entry, None)
        descriptor = self._part_of(number)
        os.fchmod(descriptor, 0o444)
        actual = Digest(blake3(b"").digest()) if not entry.size_bytes else entry.digest
        if entry.chunk_count <= 1:
            if sync:
                os.fsync(descriptor)
        else:
            beside = HashBeside(partial_file.reader(descriptor), self._hashes.setdefault(number, RunningHash()))
            try:
                if sync:
                    os.fsync(descriptor)
            finally:
                actual = beside.result()
        if actual != entry.digest:
            raise self._untrue(entry.path, None, str(entry.digest), str(actual))
        return ReceivedFile(entry, self._part(number))

    def _require_open(self) -> None:
        if self._closed:
            raise NoSuchUpload(upload=self._directory.name)

    def _untrue(self, path: str, chunk: int | None, expected: str, actual: str) -> DigestMismatch:
        return DigestMismatch(path=path, chunk=chunk, expected=expected, actual=actual, source="upload")


def _nth(chunks: bytes, at: int) -> bytes:
    return chunks[32 * at : 32 * (at + 1)]


def _chunks_of(path: Path) -> Iterator[bytes]:
    buffer = bytearray(CHUNK_BYTES)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(buffer):
            yield blake3(view[:size]).digest()
