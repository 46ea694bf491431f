"""Transfers that are damaged on the way or lied about: how many of them end as an object with wrong bytes.

Each transfer pulls one object, by range or by batch, as it is or compressed in frames, from a peer whose answer is
wrong in one way that is drawn from a seed. A transfer counts as damaged only if what was sent differs from what is
right; what is in the store afterwards is read again and compared with its name. A compressed body can be damaged
without harm (a bit that zstd ignores, a digit in the other case): such a transfer may end well, with the right bytes.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3
from tests.fault.worlds import scratch

from modelsync.core.compression.frames import ASK_HEADER, FORMAT, PLANES, RAW, Head
from modelsync.core.errors import ModelsyncError
from modelsync.core.ids import Digest
from modelsync.core.manifest import CHUNK_BYTES, FileEntry
from modelsync.edges.disk.store import Store
from modelsync.edges.pull import codec
from modelsync.edges.pull.fetch import Fetcher
from modelsync.edges.pull.rate_limit import RateLimiter
from modelsync.ports import Peer, Progress

LARGE_EVERY = 100
"""One transfer in so many is of several chunks: a hundred times the bytes."""
FRAMED_SHARE = 0.4
FRESH_EVERY = 500
"""A new fetcher, so that what it remembers of liars does not grow with the count."""


def flipped(body: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(body))
    return body[:at] + bytes([body[at] ^ 1 << draw.randrange(8)]) + body[at + 1 :]


def truncated(body: bytes, draw: random.Random) -> bytes:
    return body[: draw.randrange(len(body))]


def shifted(body: bytes, draw: random.Random) -> bytes:
    """The bytes of a wrong offset, in the right number."""
    by = draw.randrange(1, len(body)) if len(body) > 1 else 0
    return body[by:] + body[:by]


def another(body: bytes, draw: random.Random) -> bytes:
    return draw.randbytes(len(body))


def zeroed(body: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(body))
    return body[:at] + bytes(min(len(body) - at, 512)) + body[at + 512 :]


def repeated(body: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(body))
    return body[:at] + body[: len(body) - at]


DAMAGE: tuple[Callable[[bytes, random.Random], bytes], ...] = (flipped, truncated, shifted, another, zeroed, repeated)


@dataclass
class Tally:
    """What became of the damaged transfers."""

    damaged: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """Objects whose bytes are not those of their name: each is a failure."""
    accepted: list[str] = field(default_factory=list)
    """Damaged transfers that raised nothing: each is a failure."""
    harmless: int = 0
    """Damaged frames that still became the right bytes."""


class Liar:
    """Answers every request with one body, damaged as told, and an honest head for its right length."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.peer = Peer("liar", f"http://127.0.0.1:{self._listener.getsockname()[1]}")
        self.right, self.sent = b"", b""
        self.framed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, ValueError):
            reader = connection.makefile("rb")
            method = reader.readline().split(b" ")[0]
            fields = {}
            while line := reader.readline().strip():
                name, _, value = line.decode().partition(": ")
                fields[name.lower()] = value
            if method == b"POST":
                reader.read(int(fields["content-length"]))
            connection.sendall(self._head(fields.get("range")) + self.sent)

    def _head(self, asked: str | None) -> bytes:
        """The connection ends with the answer: a body that is short is seen to be."""
        size = len(self.right)
        status, extra = "200 OK", ""
        if asked is not None:
            status = "206 Partial Content"
            extra = f"Content-Range: bytes {asked.removeprefix('bytes=')}/{size}\r\n"
        length = f"{ASK_HEADER}: {FORMAT}\r\nTransfer-Encoding: chunked" if self.framed else f"Content-Length: {size}"
        return f"HTTP/1.1 {status}\r\n{extra}{length}\r\nConnection: close\r\n\r\n".encode()


def run(count: int, seed: int) -> Tally:
    """So many transfers, each damaged in one way."""
    tally, draw = Tally(), random.Random(seed)
    root, liar = scratch(), Liar()
    store = Store(Path(root) / "state")
    try:
        store.open()
        fetcher = Fetcher(store, RateLimiter())
        for number in range(count):
            if number % FRESH_EVERY == FRESH_EVERY - 1:
                fetcher.close()
                fetcher = Fetcher(store, RateLimiter())
            _transfer(number, draw, store, fetcher, liar, tally)
        fetcher.close()
        tally.wrong += [path.name for path in store.objects.glob("??/*") if _hex(path.read_bytes()) != path.name]
    finally:
        liar.close()
        store.close()
        shutil.rmtree(root, ignore_errors=True)
    return tally


def _transfer(number: int, draw: random.Random, store: Store, fetcher: Fetcher, liar: Liar, tally: Tally) -> None:
    size = CHUNK_BYTES + draw.randrange(1, 9999) if number % LARGE_EVERY == 0 else draw.randrange(1, 5000)
    damage, framed = draw.choice(DAMAGE), codec.AVAILABLE and draw.random() < FRAMED_SHARE
    data = _compressible(size, draw) if framed else draw.randbytes(size)
    entry = _entry(data)
    batched = size <= CHUNK_BYTES and draw.random() < 0.5
    body = len(data).to_bytes(8, "big") + data if batched else data
    liar.right, liar.framed = body, framed
    wire = _in_frames(body, draw) if framed else body
    liar.sent = damage(wire, draw)
    if liar.sent == wire:
        return  # such as a shift of equal bytes: nothing was damaged
    kind = f"{damage.__name__}, {'frames of a ' * framed}{'batch' if batched else 'range'}"
    tally.damaged[kind] += 1
    if framed:  # one of its own: after wrong frames a peer is asked without them for a while
        with contextlib.closing(Fetcher(store, RateLimiter())) as fresh:
            _pull(entry, batched, fresh, liar, tally, kind, store, data)
    else:
        _pull(entry, batched, fetcher, liar, tally, kind, store, data)


def _pull(
    entry: FileEntry, batched: bool, fetcher: Fetcher, liar: Liar, tally: Tally, kind: str, store: Store, data: bytes
) -> None:
    try:
        if batched:
            fetcher.files([entry], [liar.peer], Progress())
        else:
            fetcher.file(entry, entry.chunks, [liar.peer], Progress())
    except ModelsyncError as error:
        tally.refused[type(error).__name__] += 1
    else:
        if liar.framed and store.object_path(entry.digest).read_bytes() == data:
            tally.harmless += 1
            return
        tally.accepted.append(f"{entry.digest}: {kind}")
    if store.has(entry.digest):
        tally.wrong.append(f"{entry.digest}: {kind}")


def _compressible(size: int, draw: random.Random) -> bytes:
    words = [draw.randbytes(draw.randrange(1, 9)) for _ in range(12)]
    return b"".join(draw.choices(words, k=size))[:size]


def _in_frames(body: bytes, draw: random.Random) -> bytes:
    """As an honest peer would send it, whichever number of planes it finds best."""
    result = b""
    for at in range(0, len(body), CHUNK_BYTES):
        chunk = body[at : at + CHUNK_BYTES]
        kind = draw.choice((RAW, *PLANES))
        packed = chunk if kind == RAW else codec.pack(chunk, kind)
        if len(packed) >= len(chunk):
            kind, packed = RAW, chunk
        frame = Head(kind, len(chunk), len(packed)).encode() + packed
        result += f"{len(frame):x}\r\n".encode() + frame + b"\r\n"
    return result + b"0\r\n\r\n"


def _entry(data: bytes) -> FileEntry:
    parts = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
    chunks = tuple(Digest(blake3(part).digest()) for part in parts)
    return FileEntry("model.bin", len(data), 0o644, Digest(blake3(data).digest()), chunks)


def _hex(data: bytes) -> str:
    return str(blake3(data).hexdigest())
