"""Pulls that begin at one moment do not count on the same free space."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from modelsync.core.errors import DiskFull
from modelsync.core.ids import Digest
from modelsync.core.manifest import FileEntry
from modelsync.runtime.room import Room

FREE = 1000


class Disk:
    """What the store says and does, with so much free. ``allocated``: by file, what it has taken already."""

    def __init__(self) -> None:
        self.free_bytes = FREE
        self.allocated: dict[Digest, int] = {}
        self.room = Room(self.require, self.outstanding)

    def require(self, needed_bytes: int) -> None:
        if needed_bytes > self.free_bytes:
            raise DiskFull(path="state", needed_bytes=needed_bytes, free_bytes=self.free_bytes)

    def outstanding(self, files: Sequence[FileEntry]) -> int:
        return sum(file.size_bytes - self.allocated.get(file.digest, 0) for file in files)

    def take(self, file: FileEntry, size_bytes: int) -> None:
        self.free_bytes -= size_bytes
        self.allocated[file.digest] = self.allocated.get(file.digest, 0) + size_bytes

    async def pull(self, file: FileEntry) -> None:
        async with self.room.taken([file]):
            for _ in range(4):
                await asyncio.sleep(0)
                self.take(file, file.size_bytes // 4)


def file(number: int, size_bytes: int) -> FileEntry:
    digest = Digest(bytes([number]) * 32)
    return FileEntry(f"{number}.bin", size_bytes, 0o644, digest, (digest,))


async def test_pulls_that_fit_beside_each_other_run_beside_each_other() -> None:
    disk = Disk()
    async with disk.room.taken([file(1, 600)]):
        await asyncio.wait_for(disk.pull(file(2, 400)), 5)
    assert disk.free_bytes == 600


async def test_who_comes_later_does_not_count_on_what_is_spoken_for() -> None:
    """Five of 300 see 1,000 free: three fit, the others are refused when it is their turn, and nothing runs over."""
    disk = Disk()
    ended = await asyncio.gather(*(disk.pull(file(n, 300)) for n in range(5)), return_exceptions=True)
    assert [type(each) for each in ended].count(DiskFull) == 2
    assert disk.free_bytes == 100


async def test_what_a_pull_has_taken_counts_once() -> None:
    disk, first = Disk(), file(1, 600)
    async with disk.room.taken([first]):
        disk.take(first, 600)  # its file has its length from the beginning
        await asyncio.wait_for(disk.pull(file(2, 400)), 5)
    assert disk.free_bytes == 0


async def test_one_that_would_fit_alone_waits_for_the_others() -> None:
    disk = Disk()
    async with disk.room.taken([file(1, 600)]):
        waiting = asyncio.create_task(disk.pull(file(2, 500)))
        await asyncio.sleep(0.05)
        assert not waiting.done()
    await asyncio.wait_for(waiting, 5)  # the first one failed, say: its room is free again


async def test_one_that_never_fits_is_refused_at_once() -> None:
    disk = Disk()
    async with disk.room.taken([file(1, 600)]):
        with pytest.raises(DiskFull):
            await disk.pull(file(2, FREE + 4))


async def test_one_that_is_cancelled_while_it_waits_takes_nothing() -> None:
    disk = Disk()
    async with disk.room.taken([file(1, 600)]):
        waiting = asyncio.create_task(disk.pull(file(2, 500)))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.wait_for(disk.pull(file(3, 400)), 5)
