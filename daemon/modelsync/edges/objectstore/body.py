"""The object store as one more peer: an answer's body that is read ahead, by several requests at once.

Whoever receives chunks sees what it would see of another host: bytes in order, of known length, to be verified. This
file must not know what they mean, nor which store it is.
"""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from queue import Empty, Full, Queue
from threading import Event

from modelsync.core.errors import ObjectStoreRefused, ObjectStoreUnavailable, PeerRefused, PeerUnavailable
from modelsync.core.ids import Digest
from modelsync.core.storage.condemned import Kind
from modelsync.core.transfer import batches
from modelsync.edges.objectstore.bucket import REQUESTS_AT_ONCE
from modelsync.edges.objectstore.client import STORE_PEER, ObjectStore

SEGMENT_BYTES = 64 << 20
"""One request: a store that must open a large object anew for each has few to answer."""
AHEAD = 1
"""Segments that are begun beside the first, so that there is no gap between two."""
WAITING_PIECES = 64
"""Held of each segment at most: 16 MiB of memory a body, and no more is thrown away where another peer is quicker."""
SILENT_S = 20.0
"""Without a byte for so long a store is given up, after the client's own tries: S3 means a second."""
_LOOK_S = 0.5


class _Segment:
    """One request under way. Its bytes are handed on as they come, so that whoever waits sees that it moves."""

    def __init__(self, store: ObjectStore, kind: Kind, digest: Digest, start: int, end: int) -> None:
        self._pieces: Queue[memoryview | BaseException | None] = Queue(WAITING_PIECES)
        self._unwanted = Event()
        self._left = end - start
        self._asked = store.bucket.submit(self._read, store, kind, digest, start, end)

    def _read(self, store: ObjectStore, kind: Kind, digest: Digest, start: int, end: int) -> None:
        try:
            for piece in store.stream(kind, digest, start, end):
                if not self._put(piece):
                    return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, piece: memoryview | BaseException | None) -> bool:
        """Hand on, waiting for room; False once nobody wants it."""
        while not self._unwanted.is_set():
            with contextlib.suppress(Full):
                self._pieces.put(piece, timeout=_LOOK_S)
                return True
        return False

    def next(self) -> memoryview | None:
        """What has come next; None at its end. Raises what the request raised; PeerUnavailable of silence."""
        try:
            found = self._pieces.get(timeout=SILENT_S)
        except Empty:
            raise PeerUnavailable(peer=STORE_PEER.id, reason=f"nothing came for {SILENT_S:g} s") from None
        if isinstance(found, BaseException):
            raise found
        self._left -= len(found) if found is not None else 0
        if found is None and self._left:
            raise PeerUnavailable(peer=STORE_PEER.id, reason=f"the body ended {self._left} bytes early")
        return found

    def cancel(self) -> None:
        self._unwanted.set()
        self._asked.cancel()


class StoreBody:
    """Looks like http.client's response as far as receivers use it."""

    will_close = False

    def __init__(self, store: ObjectStore, kind: Kind, digest: Digest, start: int, end: int) -> None:
        self._store = store
        self._what = (kind, digest)
        self._next = start
        self._end = end
        self._segments: deque[_Segment] = deque()
        self._rest = memoryview(b"")
        self.length = end - start
        self.fp = self

    def readinto1(self, data: memoryview) -> int:
        """Some bytes, at least one unless the body has ended. Raises FileNotFoundError and the store's faults."""
        while not self._rest:
            self._ask()
            if not self._segments:
                return 0
            piece = self._segments[0].next()
            if piece is None:
                self._segments.popleft()
            else:
                self._rest = piece
        size = min(len(data), len(self._rest))
        data[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size

    def _ask(self) -> None:
        while self._next < self._end and len(self._segments) <= AHEAD:
            end = min(self._next + SEGMENT_BYTES, self._end)
            self._segments.append(_Segment(self._store, *self._what, self._next, end))
            self._next = end

    def read(self) -> bytes:
        return b""

    def isclosed(self) -> bool:
        return self.length == 0

    def close(self) -> None:
        for segment in self._segments:
            segment.cancel()
        self._segments.clear()


class StoreBatch:
    """Many small objects one after another, each behind its size, as a peer's answer to a batch has them."""

    will_close = True
    length = 1 << 62
    """Not known: whoever reads knows how many objects it asked for."""

    def __init__(self, store: ObjectStore, digests: Sequence[Digest]) -> None:
        self._store = store
        self._waiting = iter(digests)
        self._objects: deque[Future[bytes | None]] = deque()
        self._rest = memoryview(b"")
        self.fp = self

    def readinto1(self, data: memoryview) -> int:
        """Some bytes, none once all objects were given. Raises the store's faults."""
        while len(self._objects) < REQUESTS_AT_ONCE and (digest := next(self._waiting, None)) is not None:
            asked = self._store.bucket.submit(self._store.read, "objects", digest, batches.MAX_OBJECT_BYTES)
            self._objects.append(asked)
        if not self._rest:
            if not self._objects:
                return 0
            found = self._objects.popleft().result()
            size = batches.NOT_HELD if found is None else len(found)
            self._rest = memoryview(size.to_bytes(batches.SIZE_BYTES, "big") + (found or b""))
        size = min(len(data), len(self._rest))
        data[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size

    def read(self) -> bytes:
        return b""

    def isclosed(self) -> bool:
        return False

    def close(self) -> None:
        for waiting in self._objects:
            waiting.cancel()


@contextlib.contextmanager
def store_batch(store: ObjectStore, body: bytes) -> Iterator[StoreBatch]:
    """The answer to a batch: 32-byte digests one after another. Raises PeerRefused, PeerUnavailable."""
    answer = StoreBatch(store, [Digest(body[at : at + 32]) for at in range(0, len(body), 32)])
    try:
        with _as_a_peer("a batch"):
            yield answer
    finally:
        answer.close()


@contextlib.contextmanager
def store_answer(store: ObjectStore, digest: Digest, byte_range: tuple[int, int] | None) -> Iterator[StoreBody]:
    """One body out of the store. Raises PeerRefused, PeerUnavailable, as another host's would."""
    body: StoreBody | None = None
    try:
        with _as_a_peer(str(digest)):
            kind: Kind = "objects"
            if byte_range is None:
                kind, size = _document_of(store, digest)
                byte_range = (0, size)
            body = StoreBody(store, kind, digest, *byte_range)
            yield body
    finally:
        if body is not None:
            body.close()


def store_have(store: ObjectStore, path: str) -> bytes:
    """What a peer answers to ``/v1/have/DIGEST``. Raises PeerRefused, PeerUnavailable."""
    digest = Digest.parse(path.rpartition("/")[2])
    with _as_a_peer(str(digest)):
        return json.dumps({"held": store.find("objects", digest) is not None}).encode()


@contextlib.contextmanager
def _as_a_peer(what: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise PeerRefused(peer=STORE_PEER.id, status=404, reason=f"it does not hold {what}") from error
    except ObjectStoreRefused as error:
        raise PeerRefused(peer=STORE_PEER.id, status=403, reason=error.reason) from error
    except ObjectStoreUnavailable as error:
        raise PeerUnavailable(peer=STORE_PEER.id, reason=error.reason) from error


def _document_of(store: ObjectStore, digest: Digest) -> tuple[Kind, int]:
    kinds: tuple[Kind, ...] = ("manifests", "objects")
    for kind in kinds:
        found = store.find(kind, digest)
        if found is not None:
            return kind, found[1]
    raise FileNotFoundError(str(digest))
