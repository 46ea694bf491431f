"""Pulling many small files: one request for up to a thousand, and two barriers for all instead of two fsyncs for each.

Steps 1 to 3 of an activation, as in fetch: bytes are verified before they are written, durable before they are named.
What a kill leaves in partial/ is verified and used by the next try.
"""

from __future__ import annotations

import contextlib
import http.client
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from blake3 import blake3

from modelsync.core.errors import DigestMismatch, LocalFault, PeerRefused
from modelsync.core.ids import Digest
from modelsync.core.manifest import FileEntry
from modelsync.core.transfer import batches
from modelsync.core.transfer.batches import NOT_HELD, SIZE_BYTES
from modelsync.edges.disk import durable
from modelsync.edges.disk.durable import local_faults
from modelsync.edges.disk.store import Store
from modelsync.edges.pull.chunk_stream import mismatch
from modelsync.edges.pull.codec import Undecodable
from modelsync.edges.pull.connections import Connections, read_exactly, require_going_on
from modelsync.edges.pull.framed import Framed
from modelsync.edges.pull.rate_limit import RateLimiter
from modelsync.ports import Peer, Progress

Ask = Callable[[Callable[[Peer], None]], None]
"""Asks one peer after another until one answers. Raises the last one's fault."""


class BatchPull:
    """One version's small files on their way into the store. Blocks; raises OSError and remote faults."""

    def __init__(self, store: Store, connections: Connections, limiter: RateLimiter, progress: Progress) -> None:
        self._store = store
        self._connections = connections
        self._limiter = limiter
        self._progress = progress
        self._buffer = memoryview(bytearray(batches.MAX_OBJECT_BYTES))
        self._written: list[Digest] = []

    def run(self, entries: Sequence[FileEntry], ask: Ask) -> None:
        """Pull them all; each gets its name after one barrier for all of them.

        Raises: the last peer's fault; what was verified is found again by the next try. A local fault discards it.
        """
        try:
            with local_faults(self._store.partial, "pull small files"):
                self._run(entries, ask)
        except LocalFault:  # a read may still show pages that a failed barrier lost: what lies there is not trusted
            for digest in self._written:
                with contextlib.suppress(OSError):
                    os.unlink(self._store.partial_path(digest))
            raise

    def _run(self, entries: Sequence[FileEntry], ask: Ask) -> None:
        with durable.filesystem_barrier(self._store.partial) as barrier:
            for part in batches.requests(entries):
                self._pull(part, ask)
            barrier()  # bytes before names
            for digest in self._written:
                self._store.adopt(self._store.partial_path(digest), digest, sync=False)
            barrier()

    def _pull(self, part: Sequence[FileEntry], ask: Ask) -> None:
        left = {entry.digest: entry for entry in part if not self._is_here(entry)}
        while left:
            require_going_on(self._progress)
            ask(lambda peer: self._receive(peer, left))

    def _is_here(self, entry: FileEntry) -> bool:
        """Whether a file is held, or an earlier try left its bytes."""
        if self._store.has(entry.digest):
            self._progress.add(done_bytes=entry.size_bytes)
            return True
        path = self._store.partial_path(entry.digest)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            info = os.fstat(descriptor)
            data = self._buffer[: entry.size_bytes]
            right = (
                info.st_nlink == 1  # not an object that was set aside under another name
                and info.st_size == entry.size_bytes
                and os.preadv(descriptor, [data], 0) == entry.size_bytes
                and blake3(data).digest() == entry.digest.raw
            )
            if right:
                os.fchmod(descriptor, 0o444)
        finally:
            os.close(descriptor)
        if not right:
            os.unlink(path)
            return False
        self._count(entry)
        return True

    def _receive(self, peer: Peer, left: dict[Digest, FileEntry]) -> None:
        """Whatever of it a peer holds. Raises PeerRefused: none of it; and as the body's reading does."""
        asked = list(left.values())
        body = b"".join(entry.digest.raw for entry in asked)
        with self._connections.post(peer, "/v1/batch", body) as response:
            answer = _Answer(response, peer, self._limiter, self._progress)
            for entry in asked:
                if self._has_next(answer, peer, entry):
                    self._receive_file(answer, peer, entry)
                    del left[entry.digest]
            answer.finish()
        if len(left) == len(asked):
            raise PeerRefused(peer=peer.id, status=404, reason=f"it holds none of {len(asked)} files")

    def _has_next(self, answer: _Answer, peer: Peer, entry: FileEntry) -> bool:
        head = self._buffer[:SIZE_BYTES]
        answer.read(head, entry)
        size = int.from_bytes(head, "big")
        if size == NOT_HELD:
            return False
        if size != entry.size_bytes:
            raise PeerRefused(peer=peer.id, status=200, reason=f"{size} bytes, {entry.size_bytes} were asked for")
        return True

    def _receive_file(self, answer: _Answer, peer: Peer, entry: FileEntry) -> None:
        data = self._buffer[: entry.size_bytes]
        answer.read(data, entry)
        actual = Digest(blake3(data).digest())
        if actual != entry.digest:
            raise mismatch(entry.path, 0, entry.digest, actual, peer)
        path = self._store.partial_path(entry.digest)
        with local_faults(path, "write"):
            _write(path, data)
        self._count(entry)

    def _count(self, entry: FileEntry) -> None:
        self._written.append(entry.digest)
        self._progress.add(done_bytes=entry.size_bytes)


class _Answer:
    """The bytes of one answer in order, whether they come as they are or in frames."""

    def __init__(
        self, response: http.client.HTTPResponse | Framed, peer: Peer, limiter: RateLimiter, progress: Progress
    ) -> None:
        self._response = response
        self._peer = peer
        self._limiter = limiter
        self._progress = progress
        self._unpacked = memoryview(b"")

    def read(self, data: memoryview, entry: FileEntry) -> None:
        """Fill a buffer. Raises PeerRefused: that much does not come; DigestMismatch: what came cannot be unpacked."""
        if isinstance(self._response, Framed):
            self._read_frames(self._response, data, entry)
            return
        if self._response.length is None or self._response.length < len(data):
            raise PeerRefused(peer=self._peer.id, status=200, reason="a batch that ends before its last file")
        self._limiter.take(len(data), self._progress.cancelled)
        read_exactly(self._response, data, self._peer, self._progress)
        self._progress.add(wire_bytes=len(data))

    def _read_frames(self, response: Framed, data: memoryview, entry: FileEntry) -> None:
        while data:
            if not self._unpacked:
                self._unpacked = self._next(response, entry)
            size = min(len(data), len(self._unpacked))
            data[:size] = self._unpacked[:size]
            data, self._unpacked = data[size:], self._unpacked[size:]

    def _next(self, response: Framed, entry: FileEntry) -> memoryview:
        try:
            frame = response.next(None, self._progress, self._limiter)
        except Undecodable as error:
            expected, actual = str(entry.digest), f"undecodable: {error}"
            raise DigestMismatch(
                path=entry.path, chunk=0, expected=expected, actual=actual, source=self._peer.id
            ) from error
        if frame is None:
            raise PeerRefused(peer=self._peer.id, status=200, reason="a batch that ends before its last file")
        return frame

    def finish(self) -> None:
        if isinstance(self._response, Framed):
            if self._unpacked:
                raise PeerRefused(peer=self._peer.id, status=200, reason="a batch that goes on after its last file")
            self._response.finish(self._progress)


def _write(path: Path, data: memoryview) -> None:
    descriptor = durable.create_file(path, 0o444)
    try:
        os.fchmod(descriptor, 0o444)  # whatever the umask
        durable.write_all(descriptor, data)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    finally:
        os.close(descriptor)
