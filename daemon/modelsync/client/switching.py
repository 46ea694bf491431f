"""Lets requests go on smoothly while a model is loaded in the same process.

Python hands its lock to a waiting thread only every 5 ms (sys.setswitchinterval), which is meant for throughput: beside
a load that is busy in Python, a request that lets go of the lock once, as every NumPy call may, waits 5 ms to get it
back; and a load beside busy requests waits as long for each file that it opens. While any load is under way, of any
client in this process, the interval is 0.5 ms; then it is again what the application had set.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

INTERVAL_S = 0.0005
_lock = threading.Lock()
_loads = 0
_before_s = 0.005


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Switch threads more often for as long as this lasts."""
    global _loads, _before_s  # noqa: PLW0603  the interval is the process's own, and so is the count of those who need it
    with _lock:
        if _loads == 0:
            _before_s = sys.getswitchinterval()
            sys.setswitchinterval(min(INTERVAL_S, _before_s))
        _loads += 1
    try:
        yield
    finally:
        with _lock:
            _loads -= 1
            if _loads == 0:
                sys.setswitchinterval(_before_s)


def after_fork() -> None:
    """In a forked child: the loads that were under way are the parent's."""
    global _loads, _lock  # noqa: PLW0603
    _lock = threading.Lock()
    if _loads:
        sys.setswitchinterval(_before_s)
    _loads = 0
