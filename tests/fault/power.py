"""Power cuts: the image of a mounted ext4 file system, copied after each system call, is what a cut would have left.

What the kernel has not written to the loop device yet is not in the copy; mounting the copy replays the journal. With
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

IMAGE_BYTES = 64 << 20


def why_not() -> str | None:
    """Why no image can be mounted here, if so."""
    if os.geteuid() != 0:
        return "only root can mount a file system"
    try:
        with tempfile.TemporaryDirectory() as directory, mounted(Path(directory) / "probe", new=True):
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no ext4 image can be mounted here: {error}"


@contextlib.contextmanager
def mounted(image: Path, *, new: bool = False, options: str = "loop") -> Iterator[Path]:
    """Mount an image beside itself; unmounted at the end."""
    directory = image.with_name(image.name + ".mounted")
    directory.mkdir(exist_ok=True)
    if new:
        with open(image, "wb") as file:
            file.truncate(IMAGE_BYTES)
        _run("mkfs.ext4", "-q", "-m", "0", str(image))
    _run("mount", "-t", "ext4", "-o", options, str(image), str(directory))
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
    """Whether e2fsck looks at each image after its journal was replayed."""
    _cuts: int = 0

    def points(self, choice: Choice = every) -> Iterator[Point]:
        image = self.directory / "disk.img"
        with mounted(image, new=True) as disk:
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
        faults = _replayed(cut) if self.checked else []
        with mounted(cut) as disk:
            faults += self.world.broken(disk / "root")
            faults += self.world.lost(disk / "root") if ended else []
            faults += self.world.unfinished(disk / "root", url)
        cut.unlink()
        world = f"{self.world.name}{' forced' if self.forced else ''}"
        return Point(world, name.replace(str(root), ""), tuple(faults))


def _replayed(cut: Path) -> list[str]:
    """Replay the journal as a mount would, and have the whole file system looked at."""
    subprocess.run(["e2fsck", "-E", "journal_only", "-fy", str(cut)], check=False, capture_output=True)
    result = subprocess.run(["e2fsck", "-fn", str(cut)], check=False, capture_output=True, text=True)
    return [f"e2fsck: {result.stdout[-500:]}"] if result.returncode else []


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
