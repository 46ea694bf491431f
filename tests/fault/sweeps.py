"""The sweeps: each puts one kind of fault at one system call after another, and says what did not hold.

Every function yields a ``Point`` for each fault that was put, so that a test can take a sample of what ``tools/faults``
does in full.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.disk import temporaries
from tests.fault.tracing import Call, Driver, Ended, calls_of
from tests.fault.worlds import World, copied

Choice = Callable[[int, Call], bool]
"""Whether to take the point with this index."""


@dataclass(frozen=True)
class Point:
    """One fault that was put, and what did not hold afterwards."""

    world: str
    call: str
    faults: tuple[str, ...]

    def __str__(self) -> str:
        return f"{'FAILED' if self.faults else 'ok':6} {self.world:16} {self.call}" + "".join(
            f"\n       {fault}" for fault in self.faults
        )


def every(_: int, __: Call) -> bool:
    return True


def sample(stride: int) -> Choice:
    """Every rename and every call on the live directory; of the rest one in a few, of mere opens one in more."""

    def chosen(index: int, call: Call) -> bool:
        if call.name.startswith("rename") or "/live/" in call.text:
            return True
        opens = call.name in ("openat", "open") and "O_CREAT" not in call.text
        return index % (stride * (8 if opens else 1)) == 0

    return chosen


def share(choice: Choice, part: int, parts: int) -> Choice:
    """One worker's part of a choice."""
    return lambda index, call: index % parts == part and choice(index // parts, call)


@dataclass
class Sweep:
    """One world under one driver. ``root`` is laid out anew for each point, since the calls name it."""

    driver: Driver
    world: World
    directory: Path

    def points(
        self, each: Callable[[Call], Point], among: Callable[[Call], bool], choice: Choice, url: str
    ) -> Iterator[Point]:
        self.reset()
        plain = self.driver.run(self.world.work, self.root, url)
        assert plain.code == 0, plain.error
        for index, call in enumerate(filter(among, calls_of(plain.log, self.root))):
            if choice(index, call):
                self.reset()
                yield each(call)

    @property
    def base(self) -> Path:
        return self.directory / "base"

    @property
    def root(self) -> Path:
        return self.directory / "root"

    def reset(self) -> None:
        if not self.base.exists():
            self.world.prepare(self.base)
        shutil.rmtree(self.root, ignore_errors=True)
        copied(self.base, self.root)

    def inject(self, call: Call, fault: str, url: str) -> Ended:
        return self.driver.run(
            self.world.work, self.root, url, inject=f"{call.name}:{fault}:when={call.number}", calls=("close",)
        )

    def point(self, call: Call, faults: Sequence[str]) -> Point:
        return Point(self.world.name, str(call).replace(str(self.root), ""), tuple(faults))


# --- SIGKILL ----------------------------------------------------------------------------------------------------------


def kill(sweep: Sweep, choice: Choice = every) -> Iterator[Point]:
    """SIGKILL at each call: what `current` means afterwards, and whether the work done again comes to its end."""

    def each(call: Call) -> Point:
        ended = sweep.inject(call, "signal=SIGKILL", url)
        faults = [] if ended.code == -9 else [f"it was not killed but ended with {ended.code} {ended.error}"]
        if not _last_of(ended.log, call):
            faults.append(f"it was killed elsewhere: {ended.log.splitlines()[-2:]}")
        faults += sweep.world.broken(sweep.root)
        return sweep.point(call, faults + sweep.world.unfinished(sweep.root, url))

    sweep.reset()
    with sweep.world.peer(sweep.base) as url:
        yield from sweep.points(each, lambda _: True, choice, url)


def _last_of(log: str, call: Call) -> bool:
    calls = [line for line in log.splitlines() if re.match(r"\d+ +\w+\(", line)]
    return bool(calls) and f" {call.name}(" in calls[-1]


# --- errors -----------------------------------------------------------------------------------------------------------

WRITES = re.findall(
    r"\w+",
    """
    mkdir mkdirat openat write pwrite64 ftruncate fallocate copy_file_range sendfile rename renameat renameat2 link
    linkat symlink symlinkat
    """,
)
SYNCS = ("fsync", "fdatasync", "syncfs")


def enospc(sweep: Sweep, choice: Choice = every) -> Iterator[Point]:
    """ENOSPC at each call that needs space: DiskFull, nothing left over, the old version, and later the new one."""

    def needs_space(call: Call) -> bool:
        return call.name in WRITES and (call.name != "openat" or "O_CREAT" in call.text)

    def each(call: Call) -> Point:
        ended = sweep.inject(call, "error=ENOSPC", url)
        faults = _undone(sweep, ended)
        if ended.kind != "DiskFull" and not _for_people_only(call):
            faults.append(f"it ended with {ended.code} {ended.error or '(nothing)'} instead of DiskFull")
        return sweep.point(call, faults + sweep.world.unfinished(sweep.root, url))

    sweep.reset()
    with sweep.world.peer(sweep.base) as url:
        yield from sweep.points(each, needs_space, choice, url)


def _for_people_only(call: Call) -> bool:
    """The pid in the lock is a courtesy, and a copy in user space stands behind sendfile."""
    return (call.name == "pwrite64" and "/lock>" in call.text) or call.name == "sendfile"


def eio(sweep: Sweep, choice: Choice = every) -> Iterator[Point]:
    """EIO at each fsync: DiskFailed, the file discarded, its descriptor never synced again, later the new version."""

    def each(call: Call) -> Point:
        ended = sweep.inject(call, "error=EIO", url)
        faults = _undone(sweep, ended)
        if ended.kind != "DiskFailed":
            faults.append(f"it ended with {ended.code} {ended.error or '(nothing)'} instead of DiskFailed")
        faults += _synced_again(ended.log)
        return sweep.point(call, faults + sweep.world.unfinished(sweep.root, url))

    sweep.reset()
    with sweep.world.peer(sweep.base) as url:
        yield from sweep.points(each, lambda call: call.name in SYNCS, choice, url)


def _undone(sweep: Sweep, ended: Ended) -> list[str]:
    faults = [f"the program broke: exit {ended.code}"] if ended.code not in (0, 3) else []
    faults += [f"left over: {path}" for path in temporaries(sweep.root / "state", sweep.root / "live")]
    return faults + sweep.world.broken(sweep.root)


def _synced_again(log: str) -> list[str]:
    """After a failed fsync the next thing done with that descriptor, among writing and syncing, is to close it."""
    lines = log.splitlines()
    for index, line in enumerate(lines):
        failed = re.search(r" (?:fsync|fdatasync|syncfs)\((\d+)<.*INJECTED", line)
        if failed is None:
            continue
        descriptor = rf" (\w+)\({failed.group(1)}<"
        later = [found.group(1) for each in lines[index + 1 :] if (found := re.search(descriptor, each))]
        if not later or later[0] != "close":
            return [f"after a failed fsync of descriptor {failed.group(1)}: {later[:1]}"]
        return []
    return ["no fsync failed"]
