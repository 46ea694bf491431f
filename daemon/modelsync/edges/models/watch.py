"""The models directory's events, from watchdog's inotify observer.

This file alone knows watchdog. What it needs of it beyond the public observer, and why (read in watchdog 7.1.0):

- `generate_full_events`: without it a rename from outside into the directory is reported as a creation.
- `InotifyFD.handle_event`: the only place where IN_Q_OVERFLOW can be seen. Repeated IN_MODIFY are dropped here, since
  watchdog's queues have no bound and a copy at full speed would fill them.
- `InotifyFD.add_callback`: the only place where a subdirectory's watch that was denied (ENOSPC) can be seen; the
  observer ignores it.
- `InotifyMoveEventGrouper.delay`: a rename out of the directory holds everything behind it up for 0.5 s, in the hope of
  its other half. Both halves of one rename are queued by the kernel in one go, so 5 ms are plenty.

No event that is lost does harm: the directory is rescanned anyway (runtime.sources), only later.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileAttribEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify import InotifyFullEmitter
from watchdog.observers.inotify_c import CallbackId, InotifyEvent, InotifyFD, Mask, WatchCallback, WatchDescriptor
from watchdog.observers.inotify_move_event_grouper import InotifyMoveEventGrouper

from modelsync.core.errors import WatchUnavailable
from modelsync.core.sources.events import (
    Adjusted,
    Closed,
    Created,
    Overflowed,
    Removed,
    Renamed,
    RootRemoved,
    SourceEvent,
    WatchLost,
    Written,
)

_PAIRING_S = 0.005
_REPEAT_S = 0.1
"""At most one IN_MODIFY of a file is passed on in this time. What it says, that there is a writer, it says once."""
_MAX_REPEATS = 4096
"""Files remembered for that; when there are more, all are forgotten, which costs events and no correctness."""
_LIMITS = {errno.ENOSPC: "fs.inotify.max_user_watches", errno.EMFILE: "fs.inotify.max_user_instances"}

_EVENTS: list[type[FileSystemEvent]] = [
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileAttribEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
]
"""Not the opening and the closing of readers: the scans themselves would be heard."""

Hear = Callable[[SourceEvent], None]


class InotifyWatch:
    """A ``ports.Watch`` of one directory and everything below it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._observer: _Observer | None = None

    def start(self, heard: Hear) -> None:
        """Watch the directory that is there now; ``heard`` is called from watchdog's thread and must not raise.

        Raises: WatchUnavailable: there is no directory, or the kernel's limits do not allow it.
        """
        self.stop()
        try:
            observer = _Observer(heard)
        except OSError as error:
            raise self._unavailable(error) from error
        try:
            root = os.path.realpath(self._root)
            observer.schedule(_Handler(root, heard), root, recursive=True, event_filter=_EVENTS)
            observer.start()
        except OSError as error:
            observer.end()
            raise self._unavailable(error) from error
        self._observer = observer

    def stop(self) -> None:
        """Stop the threads and give the watches back; harmless when there are none."""
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.end()

    def alive(self) -> bool:
        """Whether every thread between the kernel and the callback runs."""
        return self._observer is not None and self._observer.whole()

    def _unavailable(self, error: OSError) -> WatchUnavailable:
        return WatchUnavailable(path=str(self._root), reason=_reason(error))


def _reason(error: OSError) -> str:
    limit = _LIMITS.get(error.errno or 0)
    return f"the limit {limit} is reached; raise it with sysctl" if limit else str(error.strerror or error)


class _Handler(FileSystemEventHandler):
    """Watchdog's events as values of ours, with paths relative to the directory."""

    def __init__(self, root: str, heard: Hear) -> None:
        self._root = root
        self._heard = heard

    def on_created(self, event: FileSystemEvent) -> None:
        if not event.is_synthetic:  # those repeat, file by file, what the directory's own rename has said
            self._tell(Created(self._relative(event.src_path)))

    def on_modified(self, event: FileSystemEvent) -> None:
        self._tell(Written(self._relative(event.src_path)))

    def on_attrib(self, event: FileSystemEvent) -> None:
        self._tell(Adjusted(self._relative(event.src_path)))

    def on_closed(self, event: FileSystemEvent) -> None:
        self._tell(Closed(self._relative(event.src_path)))

    def on_deleted(self, event: FileSystemEvent) -> None:
        path = self._relative(event.src_path)
        self._tell(Removed(path) if path else RootRemoved())

    def on_moved(self, event: FileSystemEvent) -> None:
        if not event.is_synthetic:
            self._tell(Renamed(self._relative(event.src_path), self._relative(event.dest_path)))

    def _relative(self, path: bytes | str) -> str:
        text = os.fsdecode(path)
        return text[len(self._root) + 1 :] if text.startswith(self._root + os.sep) else ""

    def _tell(self, event: SourceEvent) -> None:
        self._heard(event)


class _Observer(BaseObserver):
    """What ``InotifyObserver(generate_full_events=True)`` is, on an inotify descriptor that tells more."""

    def __init__(self, heard: Hear) -> None:
        InotifyMoveEventGrouper.delay = _PAIRING_S
        self._descriptor = _Descriptor(heard)
        super().__init__(InotifyFullEmitter, inotify_fd=self._descriptor)
        self._descriptor.start()

    def on_thread_stop(self) -> None:
        super().on_thread_stop()
        self._descriptor.stop()

    def end(self) -> None:
        """Stop every thread, also of an observer whose start failed half way."""
        with contextlib.suppress(RuntimeError):
            self.stop()
        self._descriptor.stop()
        for thread in (self, self._descriptor):
            if thread.is_alive():
                thread.join()

    def whole(self) -> bool:
        threads = [self, self._descriptor, *self.emitters]
        return len(threads) > 2 and all(thread.is_alive() for thread in threads)


class _Descriptor(InotifyFD):
    """An inotify descriptor that reports lost events and denied watches, and passes repeated writes on once."""

    def __init__(self, heard: Hear) -> None:
        self._heard = heard
        self._passed_s: dict[tuple[int, bytes], float] = {}
        super().__init__()

    def handle_event(self, event: InotifyEvent) -> None:
        if event.is_queue_overflow:
            super().handle_event(event)
            self._heard(Overflowed())
            return
        if event.is_close_write:
            self._passed_s.pop((int(event.wd), event.name), None)
        if not (event.is_modify and self._repeats(event)):
            super().handle_event(event)

    def _repeats(self, event: InotifyEvent) -> bool:
        key, now_s = (int(event.wd), event.name), time.monotonic()
        if now_s - self._passed_s.get(key, -_REPEAT_S) < _REPEAT_S:
            return True
        if len(self._passed_s) >= _MAX_REPEATS:
            self._passed_s.clear()
        self._passed_s[key] = now_s
        return False

    def add_callback(self, path: bytes, mask: Mask, callback: WatchCallback, id_: CallbackId) -> WatchDescriptor:
        try:
            return super().add_callback(path, mask, callback, id_)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.ENOMEM):
                self._heard(WatchLost(_reason(error)))
            raise
