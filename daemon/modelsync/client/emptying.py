"""Returns the pages of a NumPy array to the system just before the array is freed.

malloc_trim (see ``giving_back``) returns what is free within a thread's heap, not what is free at its end; and there
lies the array that a thread loaded last. Of that glibc keeps up to twice the largest block that was ever freed, 64 MiB
at most, for each thread that loads. While an array is still there, its memory is its owner's: if nobody else refers to
it, its pages can go, and the allocator gets back a block without any. Nothing of the process's allocator is changed.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import weakref
from typing import Any

LEAST_BYTES = 256 << 10
"""Smaller arrays come by the hundred, in one model; what lies at the end of a heap is then small, too."""
_DONTNEED = 4  # MADV_DONTNEED of Linux, for private memory: at once


def empty_last(held: list[Any]) -> bool:
    """Return the pages of the last thing in a list, if it is an array that nobody else can see; its owner must free it
    at once. Whether it was.
    """
    numpy = sys.modules.get("numpy")
    if numpy is None or type(held[-1]) is not numpy.ndarray or not _alone(held, _ALONE):
        return False
    if held[-1].flags.owndata:
        return _empty(numpy, held[-1])
    owner = [held[-1].base]  # numpy.load returns another shape of what it read
    return type(owner[0]) is numpy.ndarray and _alone(owner, _ALONE + 1) and _empty(numpy, owner[0])


def empty_bytes(data: bytearray) -> None:
    """Return the pages of what its owner is done with. Freed as it is, 200 MB of it hold Python's lock for 10 ms."""
    if len(data) >= LEAST_BYTES:
        _return_pages(ctypes.addressof(ctypes.c_char.from_buffer(data)), len(data))


def _alone(held: list[Any], references: int) -> bool:
    """Whether nobody else refers to the last thing in a list, nor could from now on."""
    return _references(held) == references and not weakref.getweakrefcount(held[-1])


def _references(held: list[Any]) -> int:
    return sys.getrefcount(held[-1])


def _empty(numpy: Any, array: Any) -> bool:
    if array.nbytes < LEAST_BYTES or not _plain(numpy, array):
        return False
    return _return_pages(int(array.__array_interface__["data"][0]), int(array.nbytes))


def _return_pages(begin: int, size_bytes: int) -> bool:
    """Those that lie within this memory as a whole. Other threads run meanwhile."""
    first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
    beyond = (begin + size_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
    return bool(_libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(beyond - first), _DONTNEED) == 0)


def _plain(numpy: Any, array: Any) -> bool:
    """Whether it holds numbers, in memory that NumPy had from the C library."""
    flags = array.flags
    return bool(flags.owndata and flags.forc and not array.dtype.hasobject and _by_numpy(numpy, array))


def _by_numpy(numpy: Any, array: Any) -> bool:
    """An application may have given NumPy another allocator, whose memory is its own affair."""
    core = getattr(numpy, "_core", None) or numpy.core
    try:
        return core.multiarray.get_handler_name(array) == "default_allocator"  # type: ignore[no-any-return]
    except (AttributeError, ValueError):
        return False


_ALONE = _references([object()])
"""What Python counts for a thing that only the list refers to; versions of Python differ."""
_libc = ctypes.CDLL(None)
