"""What direct writes need of the kernel: memory that is aligned, and what statx(2) says of a file."""

from __future__ import annotations

import ctypes
import mmap
import struct

from modelsync.core.past_cache import Told

_libc = ctypes.CDLL(None, use_errno=True)
_AT_EMPTY_PATH = 0x1000
_STATX_DIOALIGN = 0x2000
_STATX_BYTES = 256
_DIOALIGN_AT = 152
"""linux/stat.h: struct statx has stx_dio_mem_align and stx_dio_offset_align there, from Linux 6.1 on."""


def buffer_of(size_bytes: int) -> memoryview:
    """Memory that begins at the border of a page."""
    return memoryview(mmap.mmap(-1, size_bytes))


def told_of(descriptor: int) -> Told | None:
    """What the kernel says of direct writes to a file; None: nothing."""
    found = ctypes.create_string_buffer(_STATX_BYTES)
    try:
        failed = _libc.statx(descriptor, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, found)
    except AttributeError:  # a C library from before 2018
        return None
    if failed or not struct.unpack_from("=I", found)[0] & _STATX_DIOALIGN:
        return None
    return Told(*struct.unpack_from("=II", found, _DIOALIGN_AT))
