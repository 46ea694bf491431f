"""Lets requests go on smoothly while a model is loaded in the same process.

Two things of Python's own hold a request up beside a load, and both are the process's, so both stand here:

- It hands its lock to a waiting thread only every 5 ms (sys.setswitchinterval), which is meant for throughput: beside a
  load that is busy in Python, a request that lets go of the lock once, as every NumPy call may, waits 5 ms to get it
  back; and a load beside busy requests waits as long for each file that it opens.
- The many objects that a load makes have it collect garbage, and a full collection looks at every object of the
  process under that lock: 83 ms beside scikit-learn. Young garbage is collected on, in smaller portions.

While any load is under way, of any client in this process, the interval is 0.5 ms and no full collection begins; then
both are again what the application had set (decisions/, "a load beside requests").
"""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
from collections.abc import Iterator

INTERVAL_S = 0.0005
_MIDDLE_ROUNDS = 2
"""Collections of the youngest before one of the middle generation: 1,400 objects, half a millisecond, not 7,000."""
_NEVER_ROUNDS = 1 << 30
_lock = threading.Lock()
_loads = 0
_before_s = 0.005
_before_rounds = (700, 10, 10)
_ours: tuple[int, int, int] | None = None
"""What the collector was set to here; None: nothing."""
_set_aside = False
"""Whether the application was seen to have set objects aside (gc.freeze)."""


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Switch threads more often, and put full collections off, for as long as this lasts."""
    global _loads  # noqa: PLW0603  the interval is the process's own, and so is the count of those who need it
    with _lock:
        if _loads == 0:
            _change()
        _loads += 1
    try:
        yield
    finally:
        with _lock:
            _loads -= 1
            if _loads == 0:
                _restore()


def loading() -> bool:
    """Whether any load is under way."""
    return _loads > 0


def after_fork() -> None:
    """In a forked child: the loads that were under way are the parent's."""
    global _loads, _lock  # noqa: PLW0603
    _lock = threading.Lock()
    if _loads:
        _restore()
    _loads = 0


def _change() -> None:
    global _before_s, _before_rounds, _ours  # noqa: PLW0603
    _before_s = sys.getswitchinterval()
    sys.setswitchinterval(min(INTERVAL_S, _before_s))
    youngest, middle, _ = _before_rounds = gc.get_threshold()
    if youngest:  # else the application has switched the collector off
        gc.set_threshold(youngest, min(middle, _MIDDLE_ROUNDS), _NEVER_ROUNDS)
        _ours = gc.get_threshold()


def _restore() -> None:
    global _ours  # noqa: PLW0603
    sys.setswitchinterval(_before_s)
    if _ours is not None and gc.get_threshold() == _ours:  # else the application has set it meanwhile
        _forget_rounds()
        gc.set_threshold(*_before_rounds)
    _ours = None


def _forget_rounds() -> None:
    """Have the collector count anew: else the collection that was put off would begin with the load's last lines.

    Setting everything aside does that, and taking it back at once leaves nothing out of later collections. Where an
    application has set its own objects aside, these must stay there, and a full collection has little to look at.
    They are asked for until there are some and never again: Python counts them one by one under its lock, 14 ms for
    scikit-learn's.
    """
    global _set_aside  # noqa: PLW0603
    _set_aside = _set_aside or gc.get_freeze_count() > 0
    if not _set_aside:
        gc.freeze()
        gc.unfreeze()
