"""Notices that the configuration file was edited, whatever the editor does, and waits until the edit is whole.

Editors write in place, rename over, truncate and write slowly, or swap a symbolic link. A watch on the inode misses
half of these and a watch on the directory misses links into other directories; one stat(2) ten times a second sees
them all. An edit is whole once the file has stood still for ``quiet_s`` and nobody has it open for writing.

This file must not know what is in the file.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

from modelsync.edges.models.scan import open_for_writing

Signature = tuple[int, int, int, int, int]


class ConfigWatch:
    """Watches one path. Made before the file is first read, so that no edit falls between the two.

    Args:
        path: the file; it may be a symbolic link, and need not exist.
        interval_s: how often it is looked at.
        quiet_s: how long it must have stood still.
    """

    def __init__(self, path: Path, interval_s: float = 0.3, quiet_s: float = 0.2) -> None:
        self.path = path
        self._interval_s = interval_s
        self._quiet_s = quiet_s
        self._seen = signature(path)
        self._moving: Signature | None = None
        self._still_since_s = 0.0
        self._look = asyncio.Event()
        self._poked = False

    def poke(self) -> None:
        """Have the file re-read now, changed or not (SIGHUP). To be called in the event loop's thread."""
        self._poked = True
        self._look.set()

    async def changes(self) -> AsyncIterator[None]:
        """Yield whenever the file is to be read again; never ends.

        A file that vanished, or is still being written, yields nothing until it is back or closed. After a
        ``poke`` a change that is under way is told once more when it is whole.
        """
        loop = asyncio.get_running_loop()
        while True:
            timer = loop.call_later(self._interval_s, self._look.set)
            await self._look.wait()
            timer.cancel()
            self._look.clear()
            if self._poked:
                self._poked = False
                yield
            elif self._changed(loop.time()):
                yield

    def _changed(self, now_s: float) -> bool:
        """One look: whether the file differs from what was last told, and the difference is whole."""
        found = signature(self.path)
        if found is None or found == self._seen:
            self._moving = None
            return False
        if found != self._moving:
            self._moving, self._still_since_s = found, now_s
            return False
        if now_s - self._still_since_s < self._quiet_s or being_written(self.path):
            return False
        if signature(self.path) != found:
            return False
        self._seen, self._moving = found, None
        return True


def signature(path: Path) -> Signature | None:
    """What changes with every edit; None if there is no such file.

    The change time is among it since it cannot be set back, as ``touch -r`` and rsync do with the other.
    """
    try:
        info = path.stat()
    except (OSError, ValueError):
        return None
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def being_written(path: Path) -> bool:
    """Whether somebody has the file open for writing; False where the kernel will not say.

    That is so for another user's file without CAP_LEASE, and on a file system without leases.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return open_for_writing(descriptor) is True
    finally:
        os.close(descriptor)
