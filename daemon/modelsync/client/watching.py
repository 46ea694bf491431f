"""The client's one thread: hears from inotify that ``current`` was switched, and keeps the client's small clock.

The daemon switches by renaming a link into LIVE/NAME, which is one event in a directory with two names. watchdog's
observer would pass it through three threads, each of which waits for Python's lock behind the application's own work;
here the thread that reads the event calls the client. Of watchdog only the binding of the three system calls is used.

No event that is lost does harm: every ``poll_s`` the links are looked at anyway, and more often where inotify is not to
be had.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from watchdog.observers.inotify_c import InotifyConstants, inotify_add_watch, inotify_init

_EVENT = struct.Struct("iIII")
_BUFFER_BYTES = 64 << 10
_MODEL_MASK = InotifyConstants.IN_MOVED_TO | InotifyConstants.IN_CREATE | InotifyConstants.IN_ONLYDIR
WITHOUT_INOTIFY_S = 0.25
"""Between two looks at the links where the kernel gives no watches."""

Changed = Callable[[str], None]
Tick = Callable[[], float]


class Watching:
    """Watches the directories of some models.

    Args:
        changed: called with a model's name when its links may have changed; must not block or raise.
        tick: called at least as often as it asks for, in seconds; must not block or raise.
        poll_s: how often every model counts as changed.
    """

    def __init__(self, live_dir: Path, changed: Changed, tick: Tick, poll_s: float) -> None:
        self._live_dir = live_dir
        self._changed, self._tick = changed, tick
        self._poll_s = poll_s
        self._names: set[str] = set()
        self._by_watch: dict[int, str] = {}
        self._descriptor = -1
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="modelsync-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, name: str) -> None:
        """Watch one more model."""
        if name not in self._names:
            self._names.add(name)
            self.wake()

    def wake(self) -> None:
        """Have the thread look at everything now."""
        with contextlib.suppress(OSError):  # full: it wakes anyway; closed: it has ended
            os.write(self._wake_write, b".")

    def close(self) -> None:
        """End the thread and give the watches back."""
        self._ended = True
        self.wake()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        self.abandon()

    def abandon(self) -> None:
        """Close the descriptors: at the end, or in a forked child, where the thread does not exist."""
        for descriptor in (self._descriptor, self._wake_read, self._wake_write):
            if descriptor >= 0:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        self._descriptor = self._wake_read = self._wake_write = -1

    @property
    def mode(self) -> str:
        """``inotify``, or ``poll`` where the kernel gave no watch for some model."""
        return "inotify" if self._descriptor >= 0 and self._names <= set(self._by_watch.values()) else "poll"

    # --- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._open()
        poller = select.poll()
        poller.register(self._wake_read, select.POLLIN)
        if self._descriptor >= 0:
            poller.register(self._descriptor, select.POLLIN)
        next_poll_s = 0.0
        while not self._ended:
            now_s = time.monotonic()
            if now_s >= next_poll_s:
                self._look_at_all()
                next_poll_s = now_s + (self._poll_s if self.mode == "inotify" else min(self._poll_s, WITHOUT_INOTIFY_S))
            wait_s = min(self._tick(), next_poll_s - now_s)
            ready = {descriptor for descriptor, _ in poller.poll(max(0.0, wait_s) * 1000)}
            if self._wake_read in ready:
                with contextlib.suppress(OSError):
                    os.read(self._wake_read, 4096)
                next_poll_s = 0.0
            if self._descriptor in ready:
                self._hear()

    def _open(self) -> None:
        self._descriptor = max(-1, inotify_init())
        if self._descriptor >= 0:
            os.set_inheritable(self._descriptor, False)
            os.set_blocking(self._descriptor, False)

    def _look_at_all(self) -> None:
        for name in list(self._names):
            self._watch(name)
            self._changed(name)

    def _watch(self, name: str) -> None:
        """Adding a watch again gives the same one, or a new one where the directory was made anew."""
        if self._descriptor < 0:
            return
        watch = inotify_add_watch(self._descriptor, os.fsencode(self._live_dir / name), _MODEL_MASK)
        self._by_watch = {number: each for number, each in self._by_watch.items() if each != name}
        if watch >= 0:
            self._by_watch[watch] = name

    def _hear(self) -> None:
        try:
            data = os.read(self._descriptor, _BUFFER_BYTES)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EINTR):
                return
            raise
        heard = dict.fromkeys(self._parsed(data))
        for name in heard:
            self._changed(name)

    def _parsed(self, data: bytes) -> Iterator[str]:
        """The models that events are about; all of them when the kernel has dropped some."""
        offset = 0
        while offset + _EVENT.size <= len(data):
            watch, mask, _, size = _EVENT.unpack_from(data, offset)
            file = data[offset + _EVENT.size : offset + _EVENT.size + size].rstrip(b"\0")
            offset += _EVENT.size + size
            if mask & InotifyConstants.IN_Q_OVERFLOW:
                yield from list(self._names)
            elif file == b"current" and watch in self._by_watch:
                yield self._by_watch[watch]
