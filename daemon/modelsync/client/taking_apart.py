"""Frees a large model bit by bit: a forest of 220 MB in one piece holds Python's lock for 7 to 35 ms.

A model is freed by whoever lets go of it last, which may be a request on an event loop. So references to its parts are
kept, without one to the model itself: it still goes the moment nobody uses it, which is quick, and its parts after it.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from types import FunctionType, ModuleType
from typing import Any

from modelsync.client.emptying import empty_last
from modelsync.client.entry import Entry
from modelsync.client.giving_back import heaps
from modelsync.client.pacing import UNWAITED_REST, Pace

LARGE_BYTES = 1 << 20
"""Of smaller ones neither the time that it takes to free them is felt, nor the memory that the C library keeps."""
_PARTS = 2000
"""Looked at, from the top down: the trees of most forests. It takes a millisecond."""
_WHOLE = (str, bytes, bytearray, int, float, complex, type(None), type, ModuleType, FunctionType)
Parts = list[Any]


class Remains:
    """What is left of a version that answers no more.

    Args:
        entry: the version; its caller lets go of it.
    """

    def __init__(self, entry: Entry) -> None:
        self._entry = weakref.ref(entry)
        self._parts = _freed_with(entry.model) if entry.size_bytes >= LARGE_BYTES else []

    def free(self, stand_back: Callable[[], None]) -> None:
        """Free the parts now, or as soon as nobody uses the version any more."""
        entry, parts = self._entry(), self._parts
        self._parts = []
        if entry is not None and parts:
            _later.free(entry, parts)
            return
        del entry
        free(parts, stand_back)


def free(parts: Parts, stand_back: Callable[[], None]) -> None:
    """Let go of parts one by one, from the end, each with its memory."""
    while parts:
        empty_last(parts)
        parts.pop()
        stand_back()


def _freed_with(model: Any) -> Parts:
    """An array is its own part: its memory goes with it."""
    return [model] if type(model).__module__ == "numpy" else parts_of(model)


def parts_of(model: Any) -> Parts:
    """A model's parts and theirs, itself left out; at most _PARTS of them.

    In the order in which they are to be freed, from the end: those that hold others first; and of one level, such as a
    forest's trees, the last first, as Python does. What was allocated last then goes first, and the C library gives its
    memory back as it goes. The other way round all of it stays until the last, which takes 14 to 32 ms by itself.
    """
    parts: Parts = []
    seen = {id(model)}
    level = [model]
    while level and len(parts) < _PARTS:
        below = [each for each in itertools.chain.from_iterable(map(_within, level)) if not isinstance(each, _WHOLE)]
        level = []
        for each in below[: _PARTS - len(parts)]:
            if id(each) not in seen:
                seen.add(id(each))
                level.append(each)
        parts[:0] = level
    return parts


def _within(thing: Any) -> Iterable[Any]:
    """What an object holds, as far as Python's own containers, NumPy's arrays of objects and attributes show it."""
    if isinstance(thing, dict):  # not by its own methods: they may load what is not there yet
        return list(itertools.islice(dict.values(thing), _PARTS))
    kind: Any = next((kind for kind in (list, tuple, set, frozenset) if isinstance(thing, kind)), None)
    if kind is not None:
        return list(itertools.islice(kind.__iter__(thing), _PARTS))
    if type(thing).__module__ == "numpy" and getattr(getattr(thing, "dtype", None), "hasobject", False):
        return list(itertools.islice(thing.flat, _PARTS))
    with contextlib.suppress(Exception):  # most have no attributes of their own; a few have ones that raise
        return list(vars(thing).values())
    return ()


class _Later:
    """Frees what somebody still used, on a thread that lives as long as there is any of it."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """In a forked child there is no such thread, and what its parent waits for is freed as it comes."""
        self._lock = threading.Lock()
        self._waited_for = 0
        self._gone: SimpleQueue[Parts] = SimpleQueue()

    def free(self, entry: Entry, parts: Parts) -> None:
        with self._lock:
            self._waited_for += 1
            if self._waited_for == 1:
                threading.Thread(target=self._run, name="modelsync-free", daemon=True).start()
        weakref.finalize(entry, self._gone.put, parts).atexit = False

    def _run(self) -> None:
        gone, lock = self._gone, self._lock
        while True:
            free(gone.get(), Pace(itertools.count().__next__, UNWAITED_REST).stand_back)
            heaps.give_back()
            with lock:
                self._waited_for -= 1
                if not self._waited_for:
                    return


_later = _Later()


def after_fork() -> None:
    """In a forked child."""
    _later.forget()
