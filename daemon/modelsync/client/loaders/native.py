"""What a library's own threads do beside a load: nothing, so that requests keep a processor.

OpenMP's number of threads belongs to the thread that asks for it: what other threads predict with is not touched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def one_thread(native: Any) -> Iterator[None]:
    """Let a library's loops run in the calling thread alone meanwhile.

    Args:
        native: the library as ctypes has it; one without OpenMP is left as it is.
    """
    try:
        before, set_threads = native.omp_get_max_threads(), native.omp_set_num_threads
    except AttributeError:
        yield
        return
    set_threads(1)
    try:
        yield
    finally:
        set_threads(before)
