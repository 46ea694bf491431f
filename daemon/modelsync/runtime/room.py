"""Disk space that pulls under way have yet to take: whoever begins later must not count on it.

Each pull by itself would see the same free space and find that it fits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

from modelsync.core.errors import DiskFull
from modelsync.core.manifest import FileEntry

Files = Sequence[FileEntry]


class Room:
    """Shared by all pulls of a node.

    Args:
        require: raises DiskFull where so many bytes do not fit, DiskFailed; blocks.
        outstanding: the bytes that files have yet to take; blocks.
    """

    def __init__(self, require: Callable[[int], None], outstanding: Callable[[Files], int]) -> None:
        self._require = require
        self._outstanding = outstanding
        self._taken: list[Files] = []
        self._checking = asyncio.Lock()
        self._changed = asyncio.Event()

    def require(self, files: Files) -> None:
        """Whether these would fit if nothing else were under way; blocks. Raises DiskFull, DiskFailed."""
        self._require(self._outstanding(files))

    @contextlib.asynccontextmanager
    async def taken(self, files: Files) -> AsyncIterator[None]:
        """While this lasts, the room of these is spoken for; waits for other pulls where they need it first.

        Raises: DiskFull: they would not fit if nothing else were under way. DiskFailed.
        """
        while not await self._take(files):
            await self._changed.wait()
        try:
            yield
        finally:
            self._taken = [each for each in self._taken if each is not files]
            self._changed.set()

    async def _take(self, files: Files) -> bool:
        """False: it has to wait for the end of another pull."""
        async with self._checking:  # between the look and the note of it nobody else looks
            self._changed.clear()
            others = list(self._taken)
            try:
                await asyncio.to_thread(self._require_all, [files, *others])
            except DiskFull:
                await asyncio.to_thread(self.require, files)
                if not others:
                    raise
                return False
            self._taken.append(files)
            return True

    def _require_all(self, pulls: Sequence[Files]) -> None:
        self._require(sum(map(self._outstanding, pulls)))
