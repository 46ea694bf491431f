"""zstd over byte planes: the one place that knows the zstandard package.

Planes are made by slicing bytes: 3.3 to 4 GB/s in CPython, as fast as NumPy here, which would add 60 MB to the daemon
(decision 15). This file must not know what the bytes are, nor whether packing them pays.
"""

from __future__ import annotations

import threading
import time

from modelsync.core.compression.choice import Trial
from modelsync.core.compression.frames import MAX_FRAME_BYTES, PLANES

try:
    import zstandard
except ImportError:  # no wheel for this platform: such a node sends and receives bytes as they are
    AVAILABLE = False
else:
    AVAILABLE = True

LEVEL = 1
"""Level 3 is 1.2 to 2 times slower for at most a fourteenth fewer bytes, and more of them where there are planes."""
MAX_WINDOW_BYTES = MAX_FRAME_BYTES
"""Of a frame, which is a decoder's memory: an honest one needs no more than its content."""

_WARM_BYTES = 32 << 10

_own = threading.local()


class Undecodable(ValueError):
    """These bytes are not what an honest peer packs."""


def split(data: bytes, planes: int) -> bytes:
    """All first bytes of the elements, then all second ones, and so on. A last element may be incomplete."""
    return data if planes == 1 else b"".join(data[plane::planes] for plane in range(planes))


def join(data: bytes, planes: int) -> bytes:
    """The inverse of ``split``."""
    if planes == 1:
        return data
    joined, at = bytearray(len(data)), 0
    for plane in range(planes):
        size = len(range(plane, len(data), planes))
        joined[plane::planes] = data[at : at + size]
        at += size
    return bytes(joined)


def pack(data: bytes, planes: int) -> bytes:
    """One zstd frame that holds its content's size."""
    return _compressor().compress(split(data, planes))


def unpack(packed: bytes | memoryview, planes: int, raw_bytes: int) -> bytes:
    """What was packed, exactly ``raw_bytes`` long.

    Raises:
        Undecodable: it says that it is larger or smaller, needs a dictionary or a large window, is cut off, is followed
            by something, or is no zstd at all.

    Nothing larger than ``raw_bytes`` is allocated, whatever the frame says.
    """
    try:
        says = zstandard.get_frame_parameters(packed)
        if says.content_size != raw_bytes:
            raise Undecodable(f"a frame that says {says.content_size} bytes where {raw_bytes} are due")
        if says.dict_id or says.window_size > MAX_WINDOW_BYTES:
            raise Undecodable(f"dictionary {says.dict_id}, a window of {says.window_size} bytes")
        data = _decompressor().decompress(packed, max_output_size=raw_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Undecodable(str(error)[:200]) from error
    if len(data) != raw_bytes:
        raise Undecodable(f"{len(data)} bytes where {raw_bytes} are due")
    return join(data, planes)


def tried(data: bytes) -> tuple[Trial, ...]:
    """Each way to pack these bytes, measured. An empty text has none."""
    pack(data[:_WARM_BYTES], 1)  # the first way would pay for the cold caches, and look slower than the second
    return tuple(packed_as(data, planes)[0] for planes in PLANES) if data else ()


def packed_as(data: bytes, planes: int) -> tuple[Trial, bytes]:
    """Pack, and what it took of this thread's processor time: another thread's work is not counted."""
    started_s = time.thread_time()
    packed = pack(data, planes)
    return Trial(planes, len(data), len(packed), time.thread_time() - started_s), packed


def _compressor() -> zstandard.ZstdCompressor:
    """One for each thread: a context of some MiB, which two threads must not share."""
    if not hasattr(_own, "compressor"):
        _own.compressor = zstandard.ZstdCompressor(level=LEVEL)
    compressor: zstandard.ZstdCompressor = _own.compressor
    return compressor


def _decompressor() -> zstandard.ZstdDecompressor:
    if not hasattr(_own, "decompressor"):
        _own.decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    decompressor: zstandard.ZstdDecompressor = _own.decompressor
    return decompressor
