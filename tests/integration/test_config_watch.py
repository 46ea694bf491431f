"""Every way in which an editor leaves a new file behind, on a real file system."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from modelsync.edges.host import config_watch
from modelsync.edges.host.config_watch import ConfigWatch, being_written

OLD = "[pins]\nfraud = 11\n"
NEW = "[pins]\nfraud = 12\n"


class Reader:
    """Counts what a watch told, and what was in the file at that moment."""

    def __init__(self, path: Path, **options: float) -> None:
        self.read: list[str] = []
        self._path = path
        self.watch = ConfigWatch(path, **options)

    async def run(self) -> None:
        async for _ in self.watch.changes():
            self.read.append(self._path.read_text() if self._path.exists() else "(gone)")

    async def told(self, count: int, within_s: float = 1.0) -> float:
        """Wait until ``count`` changes were told; gives back the seconds it took."""
        started = time.monotonic()
        while len(self.read) < count and time.monotonic() - started < within_s:
            await asyncio.sleep(0.005)
        assert len(self.read) >= count, f"{self.read} after {within_s} s"
        return time.monotonic() - started


@contextlib.asynccontextmanager
async def reading(path: Path, **options: float) -> AsyncIterator[Reader]:
    reader = Reader(path, **options)
    task = asyncio.create_task(reader.run())
    try:
        yield reader
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "modelsync.toml"
    made.write_text(OLD)
    return made


def in_place(path: Path) -> None:
    with path.open("r+") as file:
        file.write(NEW)


def truncate_and_write(path: Path) -> None:
    path.write_text(NEW)


def rename_over(path: Path) -> None:
    beside = path.with_name(".new")
    beside.write_text(NEW)
    beside.replace(path)


def backup_and_new(path: Path) -> None:
    """vim with backupcopy=no."""
    path.rename(path.with_name("modelsync.toml~"))
    path.write_text(NEW)


def unlink_and_new(path: Path) -> None:
    path.unlink()
    path.write_text(NEW)


def old_times(path: Path) -> None:
    """rsync -t and cp -p put an older time on the new content."""
    beside = path.with_name(".new")
    beside.write_text(NEW)
    os.utime(beside, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    beside.replace(path)


def same_size_and_times(path: Path) -> None:
    before = path.stat()
    in_place(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "edit",
    [in_place, truncate_and_write, rename_over, backup_and_new, unlink_and_new, old_times, same_size_and_times],
)
async def test_an_edit_is_told_once_and_within_a_second(path: Path, edit: Callable[[Path], None]) -> None:
    async with reading(path) as reader:
        await asyncio.sleep(0.25)
        assert reader.read == []
        edit(path)
        assert await reader.told(1) < 1.0
        await asyncio.sleep(0.5)
        assert reader.read == [NEW]


async def test_a_link_that_is_swapped(tmp_path: Path) -> None:
    """As Kubernetes and configuration managers do: the link's directory changes, the path stays."""
    for name, text in (("a", OLD), ("b", NEW)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "c.toml").write_text(text)
    (tmp_path / "now").symlink_to("a")
    path = tmp_path / "c.toml"
    path.symlink_to("now/c.toml")
    async with reading(path) as reader:
        (tmp_path / "next").symlink_to("b")
        (tmp_path / "next").rename(tmp_path / "now")
        await reader.told(1)
        assert reader.read == [NEW]


async def test_an_edit_before_the_first_look_is_not_missed(path: Path) -> None:
    watch = ConfigWatch(path)
    path.write_text(NEW)
    async with asyncio.timeout(2):
        async for _ in watch.changes():
            break
        else:
            pytest.fail("it ended without telling of the edit")


async def test_a_vanished_file_is_not_told_and_its_return_is(path: Path) -> None:
    async with reading(path) as reader:
        path.unlink()
        await asyncio.sleep(0.6)
        assert reader.read == []
        path.write_text(NEW)
        await reader.told(1)
        assert reader.read == [NEW]


async def test_a_file_that_was_only_moved_away_and_back_is_no_edit(path: Path) -> None:
    async with reading(path) as reader:
        path.rename(path.with_name("away"))
        await asyncio.sleep(0.3)
        path.with_name("away").rename(path)
        await asyncio.sleep(0.8)
        assert reader.read in ([], [OLD])  # a rename moves the change time on some file systems


async def test_a_poke_is_told_at_once_even_while_somebody_writes(path: Path) -> None:
    async with reading(path) as reader:
        await asyncio.sleep(0.15)
        with path.open("a") as file:
            reader.watch.poke()
            assert await reader.told(1) < 0.1
            file.write("# more\n")
            file.flush()
            await asyncio.sleep(0.6)
            assert len(reader.read) == 1
        await reader.told(2)
        assert reader.read[1] == OLD + "# more\n"


async def test_an_open_writer_is_waited_for_however_long_it_pauses(path: Path) -> None:
    async with reading(path) as reader:
        with path.open("w") as file:
            for line in NEW.splitlines(keepends=True):
                file.write(line)
                file.flush()
                await asyncio.sleep(0.7)
                assert reader.read == []
        assert await reader.told(1) < 1.0
        assert reader.read == [NEW]


async def test_fifty_slow_edits_are_never_told_half_written(path: Path) -> None:
    """Each truncates, pauses for longer than the quiet time, and writes its lines apart."""
    whole = {f"[pins]\nfraud = {number}\n# end\n" for number in range(50)}
    async with reading(path, interval_s=0.002, quiet_s=0.004) as reader:
        for number in range(50):
            with path.open("w") as file:
                await asyncio.sleep(0.01)
                for line in ("[pins]\n", f"fraud = {number}\n", "# end\n"):
                    file.write(line)
                    file.flush()
                    await asyncio.sleep(0.01)
            await reader.told(number + 1)
    assert len(reader.read) == 50
    assert set(reader.read) == whole


async def test_without_leases_the_quiet_time_still_holds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_watch, "being_written", lambda _: False)
    async with reading(path) as reader:
        with path.open("w") as file:
            for line in NEW.splitlines(keepends=True):
                await asyncio.sleep(0.1)
                file.write(line)
                file.flush()
        await reader.told(1)
        await asyncio.sleep(0.4)
        assert reader.read == [NEW]


def test_who_has_it_open_for_writing(path: Path) -> None:
    assert not being_written(path)
    with path.open():
        assert not being_written(path), "a reader does no harm"
    with path.open("a"):
        assert being_written(path)
    assert not being_written(path)
    assert not being_written(path.with_name("none"))
    os.mkfifo(path.with_name("fifo"))
    assert not being_written(path.with_name("fifo"))


PROBE = """
import sys, time
from pathlib import Path
from modelsync.edges.host.config_watch import being_written
path, deadline = Path(sys.argv[1]), time.monotonic() + 2
while time.monotonic() < deadline:
    being_written(path)
print("alive")
"""


def test_a_writer_that_comes_in_the_middle_of_the_look_neither_kills_us_nor_hangs(path: Path) -> None:
    """A lease that is broken would raise SIGIO, whose default is death: thousands of opens meet thousands of looks."""
    source = str(Path(config_watch.__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", PROBE, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
    ) as probe:
        slowest_s = 0.0
        while probe.poll() is None:
            started = time.monotonic()
            with path.open("a"):
                slowest_s = max(slowest_s, time.monotonic() - started)
        assert probe.stdout is not None
        assert probe.stdout.read() == "alive\n"
        assert probe.returncode != -signal.SIGIO
        assert slowest_s < 1.0
