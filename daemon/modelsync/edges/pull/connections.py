"""One request to a peer and its answer: kept-alive connections, and what an answer must look like to be read at all.

http.client on a plain socket: recv releases the GIL, so several pulls and the event loop run beside each other.
aiohttp's stream was the alternative: it hands out a new bytes object for each read, on the event loop's own thread.
This file must not know what the bytes mean.
"""

from __future__ import annotations

import contextlib
import http.client
import select
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import cast
from urllib.parse import urlsplit

from modelsync.core.errors import ModelsyncError, PeerRefused, PeerUnavailable, TimedOut
from modelsync.core.ids import Digest
from modelsync.edges.objectstore.body import store_answer, store_batch, store_have
from modelsync.edges.objectstore.client import ObjectStore
from modelsync.edges.pull.attempt import Attempt
from modelsync.ports import Peer, Progress

TIMEOUT_S = 5.0
"""Silence on a connection for this long means another peer is asked; below the 10 s in which a daemon must stop."""
CHUNK_TIMEOUT_S = 60.0
"""A peer that takes longer for one chunk (below 17 KB/s) is given up, however steadily it drips."""
_IDLE_CONNECTIONS = 4


class Connections:
    """Kept-alive connections by peer, so that a small pull costs one round trip.

    Args:
        headers: what every request carries, read anew for each: the epoch moves.
        depot: the object store, which is asked as one more peer.
    """

    def __init__(self, headers: Callable[[], Mapping[str, str]], depot: ObjectStore | None = None) -> None:
        self._headers = headers
        self._depot = depot
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
        return http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=TIMEOUT_S)

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
    def post(self, peer: Peer, path: str, body: bytes) -> Iterator[http.client.HTTPResponse]:
        """The answer to a question with a body; a 200 of known length. Raises as ``get``."""
        if self._depot is not None and peer.url == self._depot.peer.url:
            with store_batch(self._depot, body) as answer:
                yield cast(http.client.HTTPResponse, answer)
            return
        headers = {"Content-Type": "application/octet-stream"}
        with self._exchange(peer, "POST", path, body, headers) as response:
            _require_range(response, peer, None)
            if response.length is None:
                raise PeerRefused(peer=peer.id, status=200, reason="a body without a length")
            yield response

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
