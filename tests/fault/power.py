"""Power cuts: the image of a mounted file system, copied after each system call, is what a cut would have left.

What the kernel has not written to the loop device yet is not in the copy; mounting the copy replays the journal (on
btrfs its tree log). With
``forced`` another file is fsynced before each copy, as some other process might: that commits every name given so far,
and so shows a name that was given before its bytes were durable.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.fault.sweeps import Choice, Point, every
from tests.fault.tracing import Call, Driver
from tests.fault.worlds import World


@dataclass(frozen=True)
class FileSystem:
    """What is made, mounted and checked.

    Args:
        image_bytes: the least that it can be made on, or little more.
        replay: before the check, of an image that was not unmounted; empty: mounting it does that.
    """

    name: str
    image_bytes: int
    make: tuple[str, ...]
    check: tuple[str, ...]
    options: str = "loop"
    replay: tuple[str, ...] = ()


FILE_SYSTEMS = {
    each.name: each
    for each in (
        FileSystem(
            "ext4",
            64 << 20,
            ("mkfs.ext4", "-q", "-m", "0"),
            ("e2fsck", "-fn"),
            replay=("e2fsck", "-E", "journal_only", "-fy"),
        ),
        # A copy has the same UUID as the original, which is mounted.
        FileSystem("xfs", 320 << 20, ("mkfs.xfs", "-q"), ("xfs_repair", "-n"), options="loop,nouuid"),
        FileSystem("btrfs", 256 << 20, ("mkfs.btrfs", "-q"), ("btrfs", "check", "--readonly")),
    )
}
EXT4 = FILE_SYSTEMS["ext4"]


def why_not(kind: FileSystem = EXT4) -> str | None:
    """Why no image can be mounted here, if so."""
    if os.geteuid() != 0:
        return "only root can mount a file system"
    try:
        with tempfile.TemporaryDirectory() as directory, mounted(Path(directory) / "probe", new=True, kind=kind):
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no {kind.name} image can be mounted here: {error}"


@contextlib.contextmanager
def mounted(image: Path, *, new: bool = False, options: str = "", kind: FileSystem = EXT4) -> Iterator[Path]:
    """Mount an image beside itself; unmounted at the end."""
    directory = image.with_name(image.name + ".mounted")
    directory.mkdir(exist_ok=True)
    if new:
        with open(image, "wb") as file:
            file.truncate(kind.image_bytes)
        _run(*kind.make, str(image))
    _run("mount", "-t", kind.name, "-o", options or kind.options, str(image), str(directory))
    try:
        yield directory
    finally:
        _unmount(directory)
        directory.rmdir()


def _unmount(directory: Path) -> None:
    # Another thread's child, between its fork and its exec, may hold a copy of a descriptor that is closed here.
    for attempt in range(50):
        try:
            _run("umount", str(directory))
            return
        except subprocess.CalledProcessError:
            if attempt == 49:
                raise
            time.sleep(0.1)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@dataclass
class Cuts:
    """One world on one image under one driver."""

    driver: Driver
    world: World
    directory: Path
    forced: bool
    checked: bool = False
    """Whether the file system's own checker looks at each image after its journal was replayed."""
    kind: FileSystem = EXT4
    _cuts: int = 0

    def points(self, choice: Choice = every) -> Iterator[Point]:
        image = self.directory / "disk.img"
        with mounted(image, new=True, kind=self.kind) as disk:
            root = disk / "root"
            root.mkdir()
            self.world.prepare(root)
            with self.world.peer(root) as url:
                _run("sync", "--file-system", str(disk))
                for index, call in enumerate(self.driver.stops(self.world.work, root, url)):
                    if choice(index, call):
                        if self.forced:
                            _commit(disk / "another process's file")
                        yield self._point(image, f"after {call}", root, url)
                if not self.forced and choice(0, Call("exit_group", 1, f"{root}/live/")):
                    yield self._point(image, "after its end", root, url, ended=True)

    def _point(self, image: Path, name: str, root: Path, url: str, *, ended: bool = False) -> Point:
        """``ended``: the work reported that it was done, so its outcome must have survived the cut."""
        # A name of its own: mounting a file again that is still mounted somewhere shows the old mount's content.
        self._cuts += 1
        cut = self.directory / f"cut-{self._cuts}.img"
        _copy(image, cut)
        faults = _replayed(cut, self.kind) if self.checked else []
        with mounted(cut, kind=self.kind) as disk:
            faults += self.world.broken(disk / "root")
            faults += self.world.lost(disk / "root") if ended else []
            faults += self.world.unfinished(disk / "root", url)
        cut.unlink()
        world = f"{self.world.name}{' forced' if self.forced else ''}"
        return Point(world, name.replace(str(root), ""), tuple(faults))


def _replayed(cut: Path, kind: FileSystem) -> list[str]:
    """Replay the journal as a mount does, and have the whole file system looked at."""
    if kind.replay:
        subprocess.run([*kind.replay, str(cut)], check=False, capture_output=True)
    else:
        with mounted(cut, kind=kind):
            pass
    result = subprocess.run([*kind.check, str(cut)], check=False, capture_output=True, text=True)
    return [f"{kind.check[0]}: {result.stdout[-500:]}{result.stderr[-500:]}"] if result.returncode else []


def _copy(image: Path, cut: Path) -> None:
    """Copy until nothing was written meanwhile: a torn copy is a state that no order of writes could have left."""
    for _ in range(50):
        _run("cp", "--sparse=always", str(image), str(cut))
        if filecmp.cmp(image, cut, shallow=False):
            return
    raise OSError(f"{image} does not come to rest")


def _commit(path: Path) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        os.write(descriptor, b"x")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
