"""Pulling bytes from a peer into the store: steps 1 to 3 of an activation.

A thread with a plain socket receives into one reused buffer; recv, BLAKE3 and pwrite all release the GIL, so
several pulls and the event loop run beside each other. aiohttp's stream was the alternative: it hands out a new bytes
object for each read, on the event loop's own thread. Nothing counts until its chunk's digest was checked.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial as partial_call
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from blake3 import blake3

from modelsync.core.errors import DigestMismatch, DiskFailed, ModelsyncError, PeerRefused, PeerUnavailable, TimedOut
from modelsync.core.ids import Digest
from modelsync.core.manifest import FileEntry
from modelsync.core.transfer import Run, runs
from modelsync.edges import durable
from modelsync.edges.durable import local_faults
from modelsync.edges.store import Store
from modelsync.ports import Peer, Progress

Answer = TypeVar("Answer")

TIMEOUT_S = 10.0
"""Silence on a connection for this long means another peer is asked."""
_WRITEBACK_BYTES = 32 << 20
_IDLE_CONNECTIONS = 4


@dataclass(frozen=True, slots=True)
class _FilePull:
    """One file under way; ``verified`` grows."""

    entry: FileEntry
    chunks: Sequence[Digest]
    descriptor: int
    verified: set[int]
    progress: Progress


class RateLimiter:
    """A bucket that all pulls of a node share; the rate may change while they run. 0 means no limit."""

    def __init__(self, rate_bytes_per_s: int = 0) -> None:
        self.rate_bytes_per_s = rate_bytes_per_s
        self._guard = threading.Lock()
        self._free_at_s = 0.0

    def take(self, size_bytes: int) -> None:
        """Wait until these bytes may be counted."""
        rate = self.rate_bytes_per_s
        if not rate:
            return
        with self._guard:
            now = time.monotonic()
            start = max(now, self._free_at_s)
            self._free_at_s = start + size_bytes / rate
        time.sleep(min(max(0.0, start - now), 60.0))


class Connections:
    """Kept-alive connections by peer, so that a small pull costs one round trip."""

    def __init__(self) -> None:
        self._idle: dict[str, list[http.client.HTTPConnection]] = {}
        self._guard = threading.Lock()

    def take(self, url: str) -> http.client.HTTPConnection:
        with self._guard:
            idle = self._idle.get(url)
            if idle:
                return idle.pop()
        parts = urlsplit(url)
        return http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=TIMEOUT_S)

    def give_back(self, url: str, connection: http.client.HTTPConnection) -> None:
        with self._guard:
            idle = self._idle.setdefault(url, [])
            if len(idle) < _IDLE_CONNECTIONS:
                idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        with self._guard:
            for idle in self._idle.values():
                for connection in idle:
                    connection.close()
            self._idle.clear()


class Fetcher:
    """Pulls objects into one store. Its methods block; call them from a thread."""

    def __init__(self, store: Store, limiter: RateLimiter) -> None:
        self._store = store
        self._limiter = limiter
        self._connections = Connections()

    def close(self) -> None:
        self._connections.close()

    # --- documents --------------------------------------------------------------------------------------------------

    def document(self, digest: Digest, peers: Sequence[Peer], max_bytes: int, progress: Progress) -> bytes:
        """A manifest or chunk list, from the first peer that has it right; kept in the store.

        Raises: the last peer's fault, when all have failed.
        """
        data = self._store.read_document(digest)
        if data is not None:
            return data
        data = self._from_any(peers, progress, lambda peer: self._read_document(peer, digest, max_bytes))
        self._store.put_document(data)
        progress.wire_bytes += len(data)
        return data

    def _read_document(self, peer: Peer, digest: Digest, max_bytes: int) -> bytes:
        with self._get(peer, digest, None) as response:
            data = response.read(max_bytes + 1)
            if len(data) > max_bytes or (response.length or 0) > 0:
                raise PeerRefused(peer=peer.id, status=200, reason=f"a document above {max_bytes} bytes")
        actual = Digest(blake3(data).digest())
        if actual != digest:
            raise _mismatch(str(digest), None, digest, actual, peer)
        return data

    @staticmethod
    def _from_any(peers: Sequence[Peer], progress: Progress, ask: Callable[[Peer], Answer]) -> Answer:
        fault: ModelsyncError = PeerUnavailable(peer="any", reason="no peer that could have it is known")
        for peer in peers:
            try:
                return ask(peer)
            except (PeerRefused, PeerUnavailable, DigestMismatch) as error:
                fault = error
                progress.blamed.append(error)
        raise fault

    # --- files ------------------------------------------------------------------------------------------------------

    def file(self, entry: FileEntry, chunks: Sequence[Digest], peers: Sequence[Peer], progress: Progress) -> None:
        """Pull one file's bytes and give them their name, resuming what an earlier try left behind.

        Raises:
            PeerUnavailable, PeerRefused, DigestMismatch: every peer has failed; verified chunks are kept for next time.
            DiskFull, DiskFailed: the file was discarded.
            TimedOut: cancelled.
        """
        partial = self._store.partial_path(entry.digest)
        with local_faults(partial, "prepare a pull"):
            descriptor = self._open_partial(partial, entry.size_bytes)  # (1)
        try:
            verified = _verified_chunks(descriptor, entry, chunks)
            progress.done_bytes += sum(entry.chunk_range(index)[1] for index in verified)
            pull = _FilePull(entry, chunks, descriptor, verified, progress)
            while missing := runs(entry, verified):
                self._from_any(peers, progress, partial_call(self._run, pull, missing[0]))  # (2)
            self._finish(descriptor, partial, entry)  # (2) and (3)
        finally:
            os.close(descriptor)

    def _open_partial(self, path: Path, size_bytes: int) -> int:
        try:
            descriptor = durable.create_file(path, 0o600)
        except FileExistsError:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(descriptor).st_size != size_bytes:
                os.ftruncate(descriptor, 0)
                if size_bytes:
                    os.posix_fallocate(descriptor, 0, size_bytes)
        except BaseException:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
        return descriptor

    def _run(self, pull: _FilePull, run: Run, peer: Peer) -> None:
        """Receive what is still missing of a range; an earlier peer may have delivered the beginning of it."""
        while run.first in pull.verified:
            run = Run(run.first + 1, run.last)
        with self._get(peer, pull.entry.digest, run.byte_range(pull.entry)) as response:
            self._receive(response, peer, pull, run)

    def _receive(self, response: http.client.HTTPResponse, peer: Peer, pull: _FilePull, run: Run) -> None:
        buffer = memoryview(bytearray(pull.entry.chunk_bytes))
        written_from = run.byte_range(pull.entry)[0]
        for index in range(run.first, run.last + 1):
            if pull.progress.cancelled.is_set():
                raise TimedOut(what="pull", reached=f"cancelled at chunk {index} of {pull.entry.path}")
            offset, size = pull.entry.chunk_range(index)
            self._limiter.take(size)
            self._receive_chunk(response, peer, pull, index, buffer[:size])
            if offset + size - written_from >= _WRITEBACK_BYTES:
                durable.start_writeback(pull.descriptor, written_from, offset + size - written_from)
                written_from = offset + size

    def _receive_chunk(
        self, response: http.client.HTTPResponse, peer: Peer, pull: _FilePull, index: int, data: memoryview
    ) -> None:
        """One chunk: received, verified while hot, and only then written and counted."""
        _read_exactly(response, data, peer)
        pull.progress.wire_bytes += len(data)
        actual = Digest(blake3(data).digest())
        if actual != pull.chunks[index]:
            raise _mismatch(pull.entry.path, index, pull.chunks[index], actual, peer)
        with local_faults(self._store.partial, "write"):
            _pwrite_all(pull.descriptor, data, pull.entry.chunk_range(index)[0])
        pull.verified.add(index)
        pull.progress.done_bytes += len(data)

    def _finish(self, descriptor: int, partial: Path, entry: FileEntry) -> None:
        """Steps 2 and 3: the whole file's digest beside its fsync, then its name."""
        whole = _HashBeside(descriptor) if entry.chunk_count != 1 else None
        try:
            with local_faults(partial, "fsync"):
                os.fchmod(descriptor, 0o444)
                os.fsync(descriptor)
        except DiskFailed:
            with contextlib.suppress(OSError):
                os.unlink(partial)  # the kernel may have dropped what it could not write: never retried
            raise
        finally:
            actual = whole.result() if whole else entry.digest
        if actual != entry.digest:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise DigestMismatch(
                path=entry.path, chunk=None, expected=str(entry.digest), actual=str(actual), source="manifest"
            )
        with local_faults(partial, "adopt"):
            self._store.adopt(partial, entry.digest)

    # --- HTTP -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _get(
        self, peer: Peer, digest: Digest, byte_range: tuple[int, int] | None
    ) -> Iterator[http.client.HTTPResponse]:
        """One response whose status and range are exactly what was asked for.

        Raises: PeerUnavailable, PeerRefused. The connection is kept only after a body that was read to its end.
        """
        try:
            connection, response = self._request(peer, digest, byte_range)
        except (OSError, http.client.HTTPException) as error:
            raise PeerUnavailable(peer=peer.id, reason=f"{type(error).__name__}: {error}") from error
        try:
            _require_range(response, peer, byte_range)
            yield response
            if response.isclosed() and not response.will_close:
                self._connections.give_back(peer.url, connection)
                return
            connection.close()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise PeerUnavailable(peer=peer.id, reason=f"{type(error).__name__}: {error}") from error
        except BaseException:
            connection.close()
            raise

    def _request(
        self, peer: Peer, digest: Digest, byte_range: tuple[int, int] | None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        headers = {"Accept-Encoding": "identity"}
        if byte_range is not None:
            headers["Range"] = f"bytes={byte_range[0]}-{byte_range[1] - 1}"
        while True:
            connection = self._connections.take(peer.url)
            reused = connection.sock is not None
            try:
                connection.request("GET", f"/v1/objects/{digest}", headers=headers)
                return connection, connection.getresponse()
            except (OSError, http.client.HTTPException):
                connection.close()
                if not reused:  # a kept connection may have been closed by the peer meanwhile; a fresh one tells
                    raise


def _require_range(response: http.client.HTTPResponse, peer: Peer, byte_range: tuple[int, int] | None) -> None:
    """Refuse redirects, encodings, and 200 or another range where a range was asked for."""
    wanted = 200 if byte_range is None else 206
    if response.status != wanted:
        raise PeerRefused(peer=peer.id, status=response.status, reason=f"{wanted} was expected")
    if response.getheader("Content-Encoding", "identity") != "identity":
        raise PeerRefused(peer=peer.id, status=response.status, reason="an encoding that was not asked for")
    if byte_range is None:
        return
    start, end = byte_range
    got = response.getheader("Content-Range", "")
    if not got.startswith(f"bytes {start}-{end - 1}/") or response.length != end - start:
        raise PeerRefused(peer=peer.id, status=206, reason=f"range {got!r}, {response.length} bytes")


def _read_exactly(response: http.client.HTTPResponse, data: memoryview, peer: Peer) -> None:
    filled = 0
    while filled < len(data):
        size = response.readinto(data[filled:])
        if not size:
            raise PeerUnavailable(peer=peer.id, reason="the body ended early")
        filled += size


def _pwrite_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        size = os.pwrite(descriptor, data, offset)
        data, offset = data[size:], offset + size


def _mismatch(path: str, chunk: int | None, expected: Digest, actual: Digest, peer: Peer) -> DigestMismatch:
    return DigestMismatch(path=path, chunk=chunk, expected=str(expected), actual=str(actual), source=peer.id)


def _verified_chunks(descriptor: int, entry: FileEntry, chunks: Sequence[Digest]) -> set[int]:
    """Which chunks of a partial file are right already. Rehashing needs no journal that could itself be torn."""
    verified: set[int] = set()
    buffer = memoryview(bytearray(entry.chunk_bytes))
    position = 0
    while position < entry.size_bytes:
        try:
            position = os.lseek(descriptor, position, os.SEEK_DATA)  # preallocated and never written: skipped
        except OSError:
            break
        index = position // entry.chunk_bytes
        offset, size = entry.chunk_range(index)
        if (
            os.preadv(descriptor, [buffer[:size]], offset) == size
            and blake3(buffer[:size]).digest() == chunks[index].raw
        ):
            verified.add(index)
        position = offset + size
    return verified


class _HashBeside(threading.Thread):
    """Hash a file through a descriptor while another thread waits for its fsync."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(name="hash-beside", daemon=True)
        self._descriptor = descriptor
        self._hasher = blake3()
        self._error: OSError | None = None
        self.start()

    def run(self) -> None:
        buffer = memoryview(bytearray(1 << 20))
        offset = 0
        try:
            while size := os.preadv(self._descriptor, [buffer], offset):
                self._hasher.update(buffer[:size])
                offset += size
        except OSError as error:
            self._error = error

    def result(self) -> Digest:
        self.join()
        if self._error is not None:
            raise self._error
        return Digest(self._hasher.digest())
