"""Pulling bytes from a peer into the store: steps 1 to 3 of an activation.

A thread with a plain socket receives into one reused buffer; recv, BLAKE3 and pwrite all release the GIL, so
several pulls and the event loop run beside each other. aiohttp's stream was the alternative: it hands out a new bytes
object for each read, on the event loop's own thread. Nothing counts until its chunk's digest was checked.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial as partial_call
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from blake3 import blake3

from modelsync.core.errors import (
    DigestMismatch,
    LocalFault,
    ModelsyncError,
    OutOfDescriptors,
    PeerRefused,
    PeerUnavailable,
    TimedOut,
)
from modelsync.core.ids import Digest
from modelsync.core.manifest import FileEntry
from modelsync.core.transfer import Run, runs
from modelsync.edges import durable, partial_file
from modelsync.edges.durable import local_faults
from modelsync.edges.store import Store
from modelsync.ports import Peer, Progress

Answer = TypeVar("Answer")

TIMEOUT_S = 5.0
"""Silence on a connection for this long means another peer is asked; below the 10 s in which a daemon must stop."""
SILENT_S = 60.0
"""How long a peer that did not answer is asked after the others: a host without power costs TIMEOUT_S each time."""
CHUNK_TIMEOUT_S = 60.0
"""A peer that takes longer for one chunk (below 17 KB/s) is given up, however steadily it drips."""
_WRITEBACK_BYTES = 32 << 20
_IDLE_CONNECTIONS = 4
_LOOK_S = 0.5
"""How often a pull that waits for another one looks whether it was cancelled itself."""


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

    def take(self, size_bytes: int, cancelled: threading.Event) -> None:
        """Wait until these bytes may be counted, or the pull is cancelled."""
        rate = self.rate_bytes_per_s
        if not rate:
            return
        with self._guard:
            now = time.monotonic()
            start = max(now, self._free_at_s)
            self._free_at_s = start + size_bytes / rate
        cancelled.wait(start - now)


class Connections:
    """Kept-alive connections by peer, so that a small pull costs one round trip."""

    def __init__(self) -> None:
        self._idle: dict[str, list[http.client.HTTPConnection]] = {}
        self._guard = threading.Lock()

    def take(self, url: str) -> http.client.HTTPConnection:
        with self._guard:
            idle = self._idle.get(url)
            while idle:
                connection = idle.pop()
                if not _has_spoken(connection):
                    return connection
                connection.close()
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


def _has_spoken(connection: http.client.HTTPConnection) -> bool:
    """Whether an idle connection was closed, or holds bytes that nobody asked for: a body longer than announced."""
    waiting = select.poll()
    waiting.register(connection.sock, select.POLLIN)
    return bool(waiting.poll(0))


class Fetcher:
    """Pulls objects into one store. Its methods block; call them from a thread."""

    def __init__(self, store: Store, limiter: RateLimiter, headers: Callable[[], Mapping[str, str]] = dict) -> None:
        self._store = store
        self._limiter = limiter
        self._headers = headers
        self._connections = Connections()
        self._silent_until_s: dict[str, float] = {}
        self._guard = threading.Lock()
        self._under_way: dict[Digest, threading.Event] = {}

    def close(self) -> None:
        self._connections.close()

    # --- documents --------------------------------------------------------------------------------------------------

    def document(
        self, digest: Digest, peers: Sequence[Peer], max_bytes: int, progress: Progress, *, keep: bool = True
    ) -> bytes:
        """A manifest or chunk list, from the first peer that has it right; kept in the store unless the caller does.

        Raises: the last peer's fault, when all have failed.
        """
        data = self._store.read_document(digest)
        if data is not None:
            return data
        data = self._from_any(peers, progress, lambda peer: self._read_document(peer, digest, max_bytes, progress))
        if keep:
            self._store.put_document(data)
        return data

    def _read_document(self, peer: Peer, digest: Digest, max_bytes: int, progress: Progress) -> bytes:
        with self._get(peer, digest, None) as response:
            if response.length is None or response.length > max_bytes:
                raise PeerRefused(
                    peer=peer.id, status=200, reason=f"{response.length} bytes, at most {max_bytes} are read"
                )
            data = bytearray(response.length)
            _read_exactly(response, memoryview(data), peer, progress)
            self._count(progress, wire_bytes=len(data))
            actual = Digest(blake3(data).digest())
            if actual != digest:
                raise _mismatch(str(digest), None, digest, actual, peer)
        return bytes(data)

    def _from_any(self, peers: Sequence[Peer], progress: Progress, ask: Callable[[Peer], Answer]) -> Answer:
        """Ask one peer after another; those that gave wrong bytes in this pull, or were silent lately, come last."""
        fault: ModelsyncError = PeerUnavailable(peer="any", reason="no peer that could have it is known")
        lies = Counter(error.source for error in progress.blamed if isinstance(error, DigestMismatch))
        now_s = time.monotonic()
        for peer in sorted(peers, key=lambda peer: (lies[peer.id], self._silent_until_s.get(peer.id, 0.0) > now_s)):
            _require_going_on(progress)
            try:
                return ask(peer)
            except (PeerRefused, PeerUnavailable, DigestMismatch) as error:
                if isinstance(error, PeerUnavailable):
                    self._silent_until_s[peer.id] = time.monotonic() + SILENT_S
                fault = _without_frames(error)
                progress.blamed.append(fault)
        _require_going_on(progress)
        raise fault

    def _count(self, progress: Progress, *, done_bytes: int = 0, wire_bytes: int = 0) -> None:
        with self._guard:  # several threads pull files of one version
            progress.done_bytes += done_bytes
            progress.wire_bytes += wire_bytes

    # --- files ------------------------------------------------------------------------------------------------------

    def file(self, entry: FileEntry, chunks: Sequence[Digest], peers: Sequence[Peer], progress: Progress) -> None:
        """Pull one file's bytes and give them their name, resuming what an earlier try left behind.

        Raises:
            PeerUnavailable, PeerRefused, DigestMismatch: every peer has failed; verified chunks are kept for next time.
            DiskFull, DiskFailed: the file was discarded.
            TimedOut: cancelled.
        """
        with self._alone(entry.digest, progress):
            if self._store.has(entry.digest):
                self._count(progress, done_bytes=entry.size_bytes)
                return
            partial = self._store.partial_path(entry.digest)
            try:
                with local_faults(partial, "pull"):
                    self._pull(partial, entry, chunks, peers, progress)
            except OutOfDescriptors:
                raise  # that says nothing about the bytes
            except LocalFault:
                # After a failed write or fsync the kernel may have dropped pages that a read still shows: what lies
                # there is not trusted again, and on a full disk it would only be in the way.
                with contextlib.suppress(OSError):
                    os.unlink(partial)
                raise

    @contextlib.contextmanager
    def _alone(self, digest: Digest, progress: Progress) -> Iterator[None]:
        """Two models may hold one file: its second pull waits for the first and then finds it held."""
        while True:
            with self._guard:
                if digest not in self._under_way:
                    done = self._under_way[digest] = threading.Event()
                    break
                other = self._under_way[digest]
            other.wait(_LOOK_S)
            _require_going_on(progress)
        try:
            yield
        finally:
            with self._guard:
                del self._under_way[digest]
            done.set()

    def _pull(
        self, partial: Path, entry: FileEntry, chunks: Sequence[Digest], peers: Sequence[Peer], progress: Progress
    ) -> None:
        descriptor = partial_file.open_partial(partial, entry.size_bytes)  # (1)
        try:
            verified = partial_file.verified_chunks(descriptor, entry, chunks, lambda: _require_going_on(progress))
            self._count(progress, done_bytes=sum(entry.chunk_range(index)[1] for index in verified))
            pull = _FilePull(entry, chunks, descriptor, verified, progress)
            while missing := runs(entry, verified):
                self._from_any(peers, progress, partial_call(self._run, pull, missing[0]))  # (2)
            self._finish(pull, partial)  # (2) and (3)
        finally:
            os.close(descriptor)

    def _run(self, pull: _FilePull, run: Run, peer: Peer) -> None:
        """Receive what is still missing of a range; an earlier peer may have delivered the beginning of it.

        At least its last chunk is missing: a peer that delivered all of a range has not failed.
        """
        while run.first in pull.verified:
            run = Run(run.first + 1, run.last)
        with self._get(peer, pull.entry.digest, run.byte_range(pull.entry)) as response:
            self._receive(response, peer, pull, run)

    def _receive(self, response: http.client.HTTPResponse, peer: Peer, pull: _FilePull, run: Run) -> None:
        buffer = memoryview(bytearray(pull.entry.chunk_bytes))
        written_from = run.byte_range(pull.entry)[0]
        for index in range(run.first, run.last + 1):
            offset, size = pull.entry.chunk_range(index)
            self._limiter.take(size, pull.progress.cancelled)
            self._receive_chunk(response, peer, pull, index, buffer[:size])
            if offset + size - written_from >= _WRITEBACK_BYTES:
                durable.start_writeback(pull.descriptor, written_from, offset + size - written_from)
                written_from = offset + size

    def _receive_chunk(
        self, response: http.client.HTTPResponse, peer: Peer, pull: _FilePull, index: int, data: memoryview
    ) -> None:
        """One chunk: received, verified while hot, and only then written and counted."""
        _read_exactly(response, data, peer, pull.progress)
        self._count(pull.progress, wire_bytes=len(data))
        actual = Digest(blake3(data).digest())
        if actual != pull.chunks[index]:
            raise _mismatch(pull.entry.path, index, pull.chunks[index], actual, peer)
        with local_faults(self._store.partial, "write"):
            partial_file.write_at(pull.descriptor, data, pull.entry.chunk_range(index)[0])
        pull.verified.add(index)
        self._count(pull.progress, done_bytes=len(data))

    def _finish(self, pull: _FilePull, partial: Path) -> None:
        """Steps 2 and 3: the whole file's digest beside its fsync, then its name."""
        entry = pull.entry
        whole = partial_file.HashBeside(pull.descriptor) if entry.chunk_count != 1 else None
        try:
            os.fchmod(pull.descriptor, 0o444)
            os.fsync(pull.descriptor)
        finally:
            actual = whole.result() if whole else pull.chunks[0]
        if actual != entry.digest:
            os.unlink(partial)
            raise DigestMismatch(
                path=entry.path, chunk=None, expected=str(entry.digest), actual=str(actual), source="manifest"
            )
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
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: its URL is none
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
        headers = {"Accept-Encoding": "identity", **self._headers()}
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


def _read_exactly(response: http.client.HTTPResponse, data: memoryview, peer: Peer, progress: Progress) -> None:
    """Fill a buffer from a body of known length, in time, and give up when the pull is cancelled.

    One recv at a time, which HTTPResponse.readinto() would not do: it returns only when the buffer is full, so a peer
    that sends a byte every few seconds would hold this thread for weeks.
    """
    assert response.length is not None and response.length >= len(data), "_require_range or _read_document saw to it"
    filled, give_up_s = 0, time.monotonic() + CHUNK_TIMEOUT_S
    while filled < len(data):
        _require_going_on(progress)
        if time.monotonic() > give_up_s:
            raise PeerUnavailable(peer=peer.id, reason=f"{filled} bytes in {CHUNK_TIMEOUT_S:g} s are too few")
        size = response.fp.readinto1(data[filled:])
        if not size:
            raise PeerUnavailable(peer=peer.id, reason="the body ended early")
        filled += size
        response.length -= size
    if response.length == 0:
        response.read()  # nothing is left: this only tells the response so


def _require_going_on(progress: Progress) -> None:
    if progress.cancelled.is_set():
        raise TimedOut(what="pull", reached=f"cancelled at {progress.done_bytes} of {progress.total_bytes} bytes")


def _without_frames(error: ModelsyncError) -> ModelsyncError:
    """Drop what tracebacks hold on to: a chunk's buffer for each fault, in a list that grows with the pull."""
    if error.__cause__ is not None:
        error.__cause__.__traceback__ = None
    return error.with_traceback(None)


def _mismatch(path: str, chunk: int | None, expected: Digest, actual: Digest, peer: Peer) -> DigestMismatch:
    return DigestMismatch(path=path, chunk=chunk, expected=str(expected), actual=str(actual), source=peer.id)
