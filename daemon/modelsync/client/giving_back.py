"""Has the C library return to the system what was freed: beside a budget, memory that it keeps counts as well.

Once it has freed an array of some size, glibc takes memory of up to that size from a heap of each thread, and keeps it
there when it is freed, for reuse by that thread: as much again as the budget, for every thread that loads. Returning it
changes nothing of how the application allocates, which a lower threshold or fewer heaps would, and it holds for trees,
whose arrays are too small for a threshold, too. Musl has no such heaps. Figures: decision 24.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable


class Heaps:
    """The heaps of this process. Looking through them takes 0.1 ms, and a millisecond for each 10 MiB returned.

    Args:
        trim: returns what is free in all of them; None: the C library knows no such thing.
    """

    def __init__(self, trim: Callable[[], object] | None) -> None:
        self._trim = trim
        self.forget()

    def forget(self) -> None:
        """In a forked child: whoever was at it is a thread of the parent's."""
        self._lock = threading.Lock()
        self._counting = threading.Lock()
        self._asked = self._done = 0

    def give_back(self) -> None:
        """Returns once all that was freed before is returned: of many who ask meanwhile one does it for all."""
        if self._trim is None:
            return
        with self._counting:
            self._asked += 1
            mine = self._asked
        with self._lock:
            if self._done >= mine:
                return
            done = self._asked
            self._trim()
            self._done = done


def _libc_trim() -> Callable[[], object] | None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return None if trim is None else lambda: trim(ctypes.c_size_t(0))


heaps = Heaps(_libc_trim())
"""Of this process, whatever the number of clients."""
