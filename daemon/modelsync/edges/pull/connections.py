"""One request to a peer and its answer: kept-alive connections, and what an answer must look like to be read at all.

http.client on a plain socket: recv releases the GIL, so several pulls and the event loop run beside each other.
aiohttp's stream was the alternative: it hands out a new bytes object for each read, on the event loop's own thread.
This file must not know what the bytes mean.
"""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import cast
from urllib.parse import urlsplit

from modelsync.core.compression import choice
from modelsync.core.compression.frames import ASK_HEADER, FORMAT, MAX_FRAME_BYTES, Ask, Compression
from modelsync.core.compression.pace import Pace
from modelsync.core.errors import DigestMismatch, ModelsyncError, PeerRefused, PeerUnavailable, TimedOut
from modelsync.core.ids import Digest
from modelsync.edges.objectstore.body import store_answer, store_batch, store_have
from modelsync.edges.objectstore.client import ObjectStore
from modelsync.edges.pull import codec
from modelsync.edges.pull.attempt import Attempt
from modelsync.edges.pull.framed import Framed
from modelsync.edges.pull.rate_limit import RateLimiter
from modelsync.ports import Peer, Progress

TIMEOUT_S = 5.0
"""Silence on a connection for this long means another peer is asked; below the 10 s in which a daemon must stop."""
UNREACHED_S = 2.0
"""A host that acknowledges nothing for this long, not even a connection's begin (sent again after 1 s), is not reached:
it is cut off or without power. One that is slow is waited for, since its kernel acknowledges."""
CHUNK_TIMEOUT_S = 60.0
"""A peer that takes longer for one chunk (below 17 KB/s) is given up, however steadily it drips."""
_IDLE_CONNECTIONS = 4
PLAIN_S = 60.0
"""After frames of a peer that were wrong it is asked for bytes as they are for so long."""


class _Link(http.client.HTTPConnection):
    """A connection that tells a host that is gone from one that is slow."""

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(TIMEOUT_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * UNREACHED_S))


class Connections:
    """Kept-alive connections by peer, so that a small pull costs one round trip.

    Args:
        headers: what every request carries, read anew for each: the epoch moves.
        depot: the object store, which is asked as one more peer.
        limiter: whose rate is told to peers that may compress.
        compression: ``[transfer] compression``, read anew for each request.
    """

    def __init__(
        self,
        headers: Callable[[], Mapping[str, str]],
        depot: ObjectStore | None = None,
        limiter: RateLimiter | None = None,
        compression: Callable[[], Compression] = lambda: "auto",
    ) -> None:
        self._headers = headers
        self._depot = depot
        self._limiter = limiter or RateLimiter()
        self._compression = compression
        self._under_way = 0
        self._plain_until_s: dict[str, float] = {}
        self._unpacking = Pace(choice.UNPACK_BYTES_PER_S)
        self._idle: dict[str, list[http.client.HTTPConnection]] = {}
        self._guard = threading.Lock()

    def _take(self, url: str) -> http.client.HTTPConnection:
        with self._guard:
            idle = self._idle.get(url)
            while idle:
                connection = idle.pop()
                if not _has_spoken(connection):
                    return connection
                connection.close()
        parts = urlsplit(url)
        return _Link(parts.hostname or "", parts.port or 80, timeout=UNREACHED_S)

    def _give_back(self, url: str, connection: http.client.HTTPConnection) -> None:
        with self._guard:
            idle = self._idle.setdefault(url, [])
            if len(idle) < _IDLE_CONNECTIONS:
                idle.append(connection)
                return
        connection.close()

    @contextlib.contextmanager
    def get(
        self,
        peer: Peer,
        digest: Digest,
        byte_range: tuple[int, int] | None,
        attempt: Attempt | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        """An object or a range of it; status and range are exactly what was asked for.

        Args:
            attempt: can end it, from the moment when the request was sent.
        Raises: PeerUnavailable, PeerRefused. The connection is kept only after a body that was read to its end.
        """
        if self._depot is not None and peer.url == self._depot.peer.url:
            with store_answer(self._depot, digest, byte_range) as body:
                yield cast(http.client.HTTPResponse, body)  # it has what receivers use of one
            return
        headers = {} if byte_range is None else {"Range": f"bytes={byte_range[0]}-{byte_range[1] - 1}"}
        with self._exchange(peer, "GET", f"/v1/objects/{digest}", None, headers, attempt) as response:
            _require_range(response, peer, byte_range)
            yield response

    @contextlib.contextmanager
    def chunks(
        self,
        peer: Peer,
        digest: Digest,
        byte_range: tuple[int, int],
        chunk_bytes: int,
        attempt: Attempt | None = None,
    ) -> Iterator[http.client.HTTPResponse | Framed]:
        """A range of whole chunks, as it is or in frames, as the peer thinks best. Raises as ``get``."""
        if self._depot is not None and peer.url == self._depot.peer.url:
            with self.get(peer, digest, byte_range, attempt) as response:
                yield response
            return
        headers = {"Range": f"bytes={byte_range[0]}-{byte_range[1] - 1}", **self._ask(peer, chunk_bytes)}
        with self._exchange(peer, "GET", f"/v1/objects/{digest}", None, headers, attempt) as response:
            framed = ASK_HEADER in headers and response.getheader(ASK_HEADER) == FORMAT
            _require_range(response, peer, byte_range, framed=framed)
            with self._watched(peer, response, framed=framed) as body:
                yield body

    def _ask(self, peer: Peer, chunk_bytes: int) -> dict[str, str]:
        """The header by which a peer may answer in frames; none where this node does not want them."""
        mode = self._compression()
        if mode == "never" or not codec.AVAILABLE or chunk_bytes > MAX_FRAME_BYTES:
            return {}
        if self._plain_until_s.get(peer.id, 0.0) > time.monotonic():
            return {}
        limit = self._limiter.rate_bytes_per_s // (1 + self._under_way)
        unpack = int(self._unpacking.lately(time.monotonic()))
        return {ASK_HEADER: Ask(mode, chunk_bytes, limit, unpack).text()}

    @contextlib.contextmanager
    def _watched(
        self, peer: Peer, response: http.client.HTTPResponse, *, framed: bool
    ) -> Iterator[http.client.HTTPResponse | Framed]:
        """A body; a peer whose frames were wrong is asked without them for a while, should it be the packing."""
        with self._guard:
            self._under_way += 1
        try:
            yield Framed(response, peer, self._unpacking) if framed else response
        except (PeerRefused, DigestMismatch):
            if framed:
                self._plain_until_s[peer.id] = time.monotonic() + PLAIN_S
            raise
        finally:
            with self._guard:
                self._under_way -= 1

    def small_document(self, peer: Peer, path: str, max_bytes: int) -> bytes:
        """The body of a short answer. Raises PeerUnavailable, PeerRefused."""
        if self._depot is not None and peer.url == self._depot.peer.url:
            return store_have(self._depot, path)
        with self._exchange(peer, "GET", path, None, {}) as response:
            _require_range(response, peer, None)
            if response.length is None or response.length > max_bytes:
                raise PeerRefused(peer=peer.id, status=200, reason=f"{response.length} bytes for {path}")
            return response.read()

    @contextlib.contextmanager
    def post(self, peer: Peer, path: str, body: bytes) -> Iterator[http.client.HTTPResponse | Framed]:
        """The answer to a question with a body; a 200 of known length, or in frames. Raises as ``get``."""
        if self._depot is not None and peer.url == self._depot.peer.url:
            with store_batch(self._depot, body) as answer:
                yield cast(http.client.HTTPResponse, answer)
            return
        headers = {"Content-Type": "application/octet-stream", **self._ask(peer, MAX_FRAME_BYTES)}
        with self._exchange(peer, "POST", path, body, headers) as response:
            framed = ASK_HEADER in headers and response.getheader(ASK_HEADER) == FORMAT
            _require_range(response, peer, None, framed=framed)
            if response.length is None and not framed:
                raise PeerRefused(peer=peer.id, status=200, reason="a body without a length")
            with self._watched(peer, response, framed=framed) as answer:
                yield answer

    @contextlib.contextmanager
    def _exchange(
        self,
        peer: Peer,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
        attempt: Attempt | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        try:
            connection, response = self._request(peer, method, path, body, headers, attempt)
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: its URL is none
            raise PeerUnavailable(peer=peer.id, reason=f"{type(error).__name__}: {error}") from error
        try:
            yield response
            if attempt is not None:
                attempt.uses(None)
            if response.isclosed() and not response.will_close:
                self._give_back(peer.url, connection)
                return
            connection.close()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise PeerUnavailable(peer=peer.id, reason=f"{type(error).__name__}: {error}") from error
        except BaseException:
            connection.close()
            raise

    def _request(
        self,
        peer: Peer,
        method: str,
        path: str,
        body: bytes | None,
        extra: Mapping[str, str],
        attempt: Attempt | None,
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        headers = {"Accept-Encoding": "identity", **self._headers(), **extra}
        while True:
            connection = self._take(peer.url)
            reused = connection.sock is not None
            try:
                connection.request(method, path, body, headers)
                if attempt is not None:
                    attempt.uses(connection.sock)
                return connection, connection.getresponse()
            except (OSError, http.client.HTTPException):
                connection.close()
                if not reused:  # a kept connection may have been closed by the peer meanwhile; a fresh one tells
                    raise

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


def _require_range(
    response: http.client.HTTPResponse, peer: Peer, byte_range: tuple[int, int] | None, *, framed: bool = False
) -> None:
    """Refuse redirects, encodings, and 200 or another range where a range was asked for."""
    wanted = 200 if byte_range is None else 206
    if response.status != wanted:
        raise PeerRefused(peer=peer.id, status=response.status, reason=f"{wanted} was expected")
    if response.getheader("Content-Encoding", "identity") != "identity":
        raise PeerRefused(peer=peer.id, status=response.status, reason="an encoding that was not asked for")
    if framed and not response.chunked:
        raise PeerRefused(peer=peer.id, status=response.status, reason="frames in a body that is not in chunks")
    if byte_range is None:
        return
    start, end = byte_range
    got = response.getheader("Content-Range", "")
    right = f"bytes {start}-{end - 1}/"
    if not got.startswith(right) or response.length != (None if framed else end - start):
        raise PeerRefused(peer=peer.id, status=206, reason=f"range {got!r}, {response.length} bytes")


def read_exactly(
    response: http.client.HTTPResponse,
    data: memoryview,
    peer: Peer,
    progress: Progress,
    attempt: Attempt | None = None,
) -> None:
    """Fill a buffer from a body of known length, in time, and give up when the pull is cancelled.

    One recv at a time, which HTTPResponse.readinto() would not do: it returns only when the buffer is full, so a peer
    that sends a byte every few seconds would hold this thread for weeks.
    """
    assert response.length is not None and response.length >= len(data), "whoever asked has looked at it"
    filled, give_up_s = 0, time.monotonic() + CHUNK_TIMEOUT_S
    while filled < len(data):
        require_going_on(progress)
        if time.monotonic() > give_up_s:
            raise PeerUnavailable(peer=peer.id, reason=f"{filled} bytes in {CHUNK_TIMEOUT_S:g} s are too few")
        size = response.fp.readinto1(data[filled:])
        if not size:
            raise PeerUnavailable(peer=peer.id, reason="the body ended early")
        filled += size
        response.length -= size
        if attempt is not None:
            attempt.arrived(size)
    if response.length == 0:
        response.read()  # nothing is left: this only tells the response so


def require_going_on(progress: Progress) -> None:
    if progress.cancelled.is_set():
        raise TimedOut(what="pull", reached=f"cancelled at {progress.done_bytes} of {progress.total_bytes} bytes")


def without_frames(error: ModelsyncError) -> ModelsyncError:
    """Drop what tracebacks hold on to: a chunk's buffer for each fault, in a list that grows with the pull."""
    if error.__cause__ is not None:
        error.__cause__.__traceback__ = None
    return error.with_traceback(None)
