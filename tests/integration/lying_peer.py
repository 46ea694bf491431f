"""A peer on a real socket that serves objects by digest, and lies about them as it is told to.

It speaks HTTP by hand, so that it can send what no HTTP library would.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from blake3 import blake3

from modelsync.core.ids import Digest
from modelsync.ports import Peer


@dataclass(frozen=True)
class Asked:
    """One request: what it was for, and the range if it had one (end not included)."""

    digest: str
    start: int
    end: int
    ranged: bool
    frames: str = ""
    """What it said of frames."""


ANSWERED = "answered"
"""What a lie returns that leaves its connection open for the next request."""


@dataclass
class LyingPeer:
    """Serves ``objects``; ``lie`` answers in its place when it is set and returns True or ``ANSWERED``."""

    id: str = "peer"
    objects: dict[str, bytes] = field(default_factory=dict)
    lie: Callable[[LyingPeer, socket.socket, Asked, bytes], bool | str] | None = None
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    body_bytes: int = 0
    """Bytes of honest bodies that were sent."""

    def hold(self, data: bytes) -> Digest:
        digest = Digest(blake3(data).digest())
        self.objects[str(digest)] = data
        return digest

    @property
    def peer(self) -> Peer:
        return Peer(self.id, f"http://127.0.0.1:{self.port}")

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.break_connections()

    def break_connections(self) -> None:
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        self._open.add(connection)
        with connection, contextlib.suppress(OSError):
            reader = connection.makefile("rb")
            while (asked := self._read_request(reader)) is not None:
                self.asked.append(asked)
                data = self.objects.get(asked.digest)
                said = self.lie is not None and self.lie(self, connection, asked, data or b"")
                if said == ANSWERED:
                    continue
                if said:
                    break
                if data is None:
                    connection.sendall(head("404 Not Found", 0))
                    continue
                part = data[asked.start : asked.end] if asked.ranged else data
                connection.sendall(honest_head(asked, data) + part)
                self.body_bytes += len(part)
        self._open.discard(connection)

    @staticmethod
    def _read_request(reader: object) -> Asked | None:
        line = reader.readline().decode()  # type: ignore[attr-defined]
        if not line:
            return None
        start, end, ranged, frames = 0, 0, False, ""
        while (header := reader.readline().decode().strip()) != "":  # type: ignore[attr-defined]
            name, _, value = header.partition(": ")
            if name.lower() == "range":
                first, _, last = value.removeprefix("bytes=").partition("-")
                start, end, ranged = int(first), int(last) + 1, True
            elif name.lower() == "x-modelsync-frames":
                frames = value
        return Asked(line.split(" ")[1].rpartition("/")[2], start, end, ranged, frames)


def head(status: str, length: int | None, *extra: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", *extra]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def honest_head(asked: Asked, data: bytes) -> bytes:
    if not asked.ranged:
        return head("200 OK", len(data))
    content_range = f"Content-Range: bytes {asked.start}-{asked.end - 1}/{len(data)}"
    return head("206 Partial Content", asked.end - asked.start, content_range)


def reset(connection: socket.socket) -> None:
    """Break off with RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


# --- lies: each answers one request, and returns True: the connection is then closed --------------------------------


def whole_for_a_range(_: LyingPeer, connection: socket.socket, asked: Asked, data: bytes) -> bool:
    connection.sendall(head("200 OK", len(data)) + data)
    return True


def another_range(_: LyingPeer, connection: socket.socket, asked: Asked, data: bytes) -> bool:
    size = asked.end - asked.start
    connection.sendall(
        head("206 Partial Content", size, f"Content-Range: bytes {asked.start + 1}-{asked.end}/{len(data)}")
        + data[:size]
    )
    return True


def range_of_another_length(_: LyingPeer, connection: socket.socket, asked: Asked, data: bytes) -> bool:
    content_range = f"Content-Range: bytes {asked.start}-{asked.end - 1}/{len(data)}"
    connection.sendall(head("206 Partial Content", asked.end - asked.start + 1, content_range) + data + b"x")
    return True


def no_content_range(_: LyingPeer, connection: socket.socket, asked: Asked, data: bytes) -> bool:
    connection.sendall(head("206 Partial Content", asked.end - asked.start) + data[asked.start : asked.end])
    return True


def gzip_encoding(_: LyingPeer, connection: socket.socket, asked: Asked, data: bytes) -> bool:
    body = data[asked.start : asked.end]
    connection.sendall(honest_head(asked, data)[:-2] + b"Content-Encoding: gzip\r\n\r\n" + body)
    return True


def chunked(_: LyingPeer, connection: socket.socket, asked: Asked, data: bytes) -> bool:
    body = data[asked.start : asked.end] if asked.ranged else data
    status = "206 Partial Content" if asked.ranged else "200 OK"
    content_range = f"Content-Range: bytes {asked.start}-{asked.end - 1}/{len(data)}"
    connection.sendall(
        head(status, None, content_range, "Transfer-Encoding: chunked")
        + f"{len(body):x}\r\n".encode()
        + body
        + b"\r\n0\r\n\r\n"
    )
    return True


FRAMED = ("X-Modelsync-Frames: 1", "Transfer-Encoding: chunked")


def framed(
    body_of: Callable[[list[bytes]], bytes], *headers: str, chunk_bytes: int = 1 << 20
) -> Callable[..., bool | str]:
    """Answer with what is made of the chunks that were asked for, as a body in frames; the connection stays open."""

    def answer(_: LyingPeer, connection: socket.socket, asked: Asked, data: bytes) -> bool | str:
        if not asked.frames:
            return False
        part = data[asked.start : asked.end]
        body = body_of([part[at : at + chunk_bytes] for at in range(0, len(part), chunk_bytes)])
        content_range = f"Content-Range: bytes {asked.start}-{asked.end - 1}/{len(data)}"
        connection.sendall(head("206 Partial Content", None, content_range, *(headers or FRAMED)) + body)
        return ANSWERED

    return answer


def in_parts(body: bytes, part_bytes: int = 300_000) -> bytes:
    """HTTP's chunked encoding."""
    parts = (body[at : at + part_bytes] for at in range(0, len(body), part_bytes))
    return b"".join(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in parts) + b"0\r\n\r\n"


def redirect(peer: LyingPeer, connection: socket.socket, asked: Asked, data: bytes) -> bool:
    connection.sendall(
        head("307 Temporary Redirect", 0, f"Location: http://127.0.0.1:{peer.port}/v1/objects/{asked.digest}")
    )
    return True


def not_found(_: LyingPeer, connection: socket.socket, asked: Asked, data: bytes) -> bool:
    connection.sendall(head("404 Not Found", 0))
    return True


def short_body(_: LyingPeer, connection: socket.socket, asked: Asked, data: bytes) -> bool:
    body = data[asked.start : asked.end] if asked.ranged else data
    connection.sendall(honest_head(asked, data) + body[:-1])
    return True


def long_body(_: LyingPeer, connection: socket.socket, asked: Asked, data: bytes) -> bool:
    """More bytes than announced, on a connection that stays open: they must not be taken for the next answer."""
    body = data[asked.start : asked.end] if asked.ranged else data
    connection.sendall(honest_head(asked, data) + body + b"HTTP/1.1 200 OK\r\n" * 100)
    return False


def flipped_byte(_: LyingPeer, connection: socket.socket, asked: Asked, data: bytes) -> bool:
    body = bytearray(data[asked.start : asked.end] if asked.ranged else data)
    body[-1] ^= 1
    connection.sendall(honest_head(asked, data) + body)
    return True


def endless_body(_: LyingPeer, connection: socket.socket, asked: Asked, data: bytes) -> bool:
    connection.sendall(head("206 Partial Content" if asked.ranged else "200 OK", None))
    while True:
        connection.sendall(b"x" * 65536)


def endless_head(_: LyingPeer, connection: socket.socket, asked: Asked, data: bytes) -> bool:
    connection.sendall(b"HTTP/1.1 206 Partial Content\r\n")
    while True:
        connection.sendall(b"X-Again: and again\r\n" * 1000)


def garbage(_: LyingPeer, connection: socket.socket, asked: Asked, data: bytes) -> bool:
    connection.sendall(b"\x16\x03\x01 not HTTP\r\n\r\n")
    return True


def slow_then_reset(_: LyingPeer, connection: socket.socket, asked: Asked, data: bytes) -> bool:
    body = data[asked.start : asked.end] if asked.ranged else data
    connection.sendall(honest_head(asked, data) + body[: len(body) // 2])
    time.sleep(0.2)
    reset(connection)
    return True


def silent(_: LyingPeer, connection: socket.socket, asked: Asked, data: bytes) -> bool:
    time.sleep(30.0)
    return True


def dripping(_: LyingPeer, connection: socket.socket, asked: Asked, data: bytes) -> bool:
    connection.sendall(honest_head(asked, data))
    for at in range(len(data)):
        connection.sendall(data[at : at + 1])
        time.sleep(0.02)
    return True


def after(size_bytes: int, then: Callable[[socket.socket], object] = lambda _: None) -> Callable[..., bool]:
    """Tell the truth for so many bytes of the body, then do something else, then close."""

    def lie(peer: LyingPeer, connection: socket.socket, asked: Asked, data: bytes) -> bool:
        body = data[asked.start : asked.end][:size_bytes]
        connection.sendall(honest_head(asked, data) + body)
        peer.body_bytes += len(body)
        then(connection)
        return True

    return lie


@contextlib.contextmanager
def peers(*ids: str) -> Iterator[list[LyingPeer]]:
    """Peers with these ids, closed at the end."""
    made = [LyingPeer(id) for id in ids]
    try:
        yield made
    finally:
        for peer in made:
            peer.close()
