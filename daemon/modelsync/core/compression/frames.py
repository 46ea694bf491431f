"""Compressed chunks on the wire: what a puller asks, and how an answer's frames begin. PROTOCOL.md section 6.

A frame is one chunk of the object, or a part of a batch: a head of ``HEAD_BYTES`` and so many bytes. Everything that is
read here comes from a stranger: it is bounded before anything is allocated for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

from modelsync.core.manifest import CHUNK_BYTES

Compression = Literal["auto", "never", "always"]
"""``[transfer] compression``."""

ASK_HEADER = "X-Modelsync-Frames"
"""On a request: frames are understood. On its answer: these are frames. Who knows nothing of it ignores it."""
FORMAT = "1"
HEAD_BYTES = 9
"""Kind, 1 byte; raw size and size on the wire, 4 bytes each, big-endian."""
MAX_FRAME_BYTES = CHUNK_BYTES
"""Of what a frame becomes: what either side holds of it in memory."""

RAW = 0
"""The bytes as they are."""
STOP = 255
"""Nothing more in this answer: what is missing is better asked for without frames."""
PLANES = (1, 2, 4, 8)
"""The other kinds: one zstd frame over so many byte planes. 1 is the bytes in their order."""

_ASK = re.compile(r"1; mode=(auto|always); chunk=([0-9]{1,9}); limit=([0-9]{1,15}); unpack=([0-9]{1,15})")


@dataclass(frozen=True, slots=True)
class Ask:
    """What a puller says about itself.

    ``limit_bytes_per_s`` is what it lets this request have of its own rate limit; 0: it has none.
    ``unpack_bytes_per_s`` is how fast it lately unpacked, verified and wrote; 0: not known.
    """

    mode: Compression
    chunk_bytes: int
    limit_bytes_per_s: int = 0
    unpack_bytes_per_s: int = 0

    def text(self) -> str:
        speeds = f"limit={self.limit_bytes_per_s}; unpack={self.unpack_bytes_per_s}"
        return f"{FORMAT}; mode={self.mode}; chunk={self.chunk_bytes}; {speeds}"


def parse_ask(text: str | None) -> Ask | None:
    """What a request's header says; None where it asks for nothing that can be given."""
    match = _ASK.fullmatch(text or "")
    if match is None or not 0 < int(match[2]) <= MAX_FRAME_BYTES:
        return None
    return Ask(cast(Compression, match[1]), int(match[2]), int(match[3]), int(match[4]))


@dataclass(frozen=True, slots=True)
class Head:
    """How a frame begins."""

    kind: int
    raw_bytes: int
    wire_bytes: int

    def encode(self) -> bytes:
        return bytes([self.kind]) + self.raw_bytes.to_bytes(4, "big") + self.wire_bytes.to_bytes(4, "big")


def decode_head(data: bytes, expected_bytes: int | None) -> Head:
    """Read a frame's head.

    Args:
        data: ``HEAD_BYTES`` bytes.
        expected_bytes: what the frame has to become; None: anything up to ``MAX_FRAME_BYTES``.
    Raises:
        ValueError: it cannot be a frame of an honest peer.
    """
    head = Head(data[0], int.from_bytes(data[1:5], "big"), int.from_bytes(data[5:9], "big"))
    if head.kind == STOP:
        if head.raw_bytes or head.wire_bytes:
            raise ValueError("a stop that has bytes")
        return head
    if head.kind != RAW and head.kind not in PLANES:
        raise ValueError(f"a frame of the unknown kind {head.kind}")
    if not 0 < head.raw_bytes <= MAX_FRAME_BYTES or expected_bytes not in (None, head.raw_bytes):
        raise ValueError(f"a frame of {head.raw_bytes} bytes where {expected_bytes or MAX_FRAME_BYTES} are due")
    if head.kind == RAW and head.wire_bytes != head.raw_bytes:
        raise ValueError(f"{head.wire_bytes} bytes for {head.raw_bytes} that are sent as they are")
    if head.kind != RAW and not 0 < head.wire_bytes < head.raw_bytes:
        raise ValueError(f"{head.wire_bytes} bytes that are said to become {head.raw_bytes}")
    return head


def pieces(start: int, end: int, chunk_bytes: int) -> Iterator[tuple[int, int]]:
    """The frames of a range: (offset, size) for each chunk or part of one, in order."""
    while start < end:
        size = min(end, start - start % chunk_bytes + chunk_bytes) - start
        yield start, size
        start += size
