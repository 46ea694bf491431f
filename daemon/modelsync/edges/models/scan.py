"""Reading the models directory: what lies there, and who has it open for writing.

This file alone calls scandir and asks for leases. What a model is decides core.sources.layout; when one
is complete, core.sources.settle.

The walk goes through directory descriptors and never through a symbolic link, so a directory that is swapped for a link
meanwhile cannot lead it out of the tree. Where a link leads is only looked at, to say what it is.

Whether somebody has a file open for writing is asked by a read lease: fcntl(2), F_SETLEASE, "a read lease can be
placed only on a file descriptor that is opened read-only ... F_RDLCK ... fails with EAGAIN" while there is a writer, a
writable shared mapping included. It works for files of this process's own user, or with CAP_LEASE, on local file
systems; elsewhere the answer is "unknown". A writer who comes while the lease is held would be made to wait for it and
this process be sent SIGIO: the lease is given back at once, a few microseconds later, and the signal is changed to
SIGURG, whose default is to be ignored.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import signal
import stat
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path

from modelsync.core.sources.layout import MAX_DEPTH, MAX_FILES, Entry, Kind
from modelsync.core.sources.settle import Writers
from modelsync.edges.disk.durable import local_faults
from modelsync.ports import Listing

_MAX_NAMES = MAX_FILES + 1_000
"""Names read below one entry, directories and ignored ones included: a little above what a model may hold."""
_MAX_TOP = 100_000
"""Names read in the models directory itself."""
_F_SETSIG = 10
"""<asm-generic/fcntl.h>; the fcntl module of Python 3.11 does not export it."""
_LINK_HOPS_PROBLEM = "a symbolic link that leads in a circle"


class DirectoryScanner:
    """A ``ports.Scanner`` of one directory. Every method blocks; threads may share it."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def identity(self) -> tuple[int, int] | None:
        """Device and inode of the directory at this path now, links followed; None where there is none.

        Raises: DiskFailed.
        """
        try:
            found = os.stat(self._root)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            with local_faults(self._root, "look at"):
                raise error
        return (found.st_dev, found.st_ino) if stat.S_ISDIR(found.st_mode) else None

    def scan(self, entries: AbstractSet[str] | None) -> Listing:
        """List the directory, and what lies below the named entries; None: below all.

        Raises: DiskFailed: it cannot be read, or there are no descriptors left.
        """
        with local_faults(self._root, "scan"):
            try:
                root = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                return Listing()
            try:
                return self._scan(root, entries)
            finally:
                os.close(root)

    def _scan(self, root: int, entries: AbstractSet[str] | None) -> Listing:
        identity = os.fstat(root)
        with os.scandir(root) as found:
            names = {name.name: _kind_unread(name) for name in itertools.islice(found, _MAX_TOP)}
        asked = names if entries is None else entries & names.keys()
        top = [entry for name in asked if (entry := self._entry(root, name, name)) is not None]
        room = os.fstatvfs(root)
        return Listing(
            identity=(identity.st_dev, identity.st_ino),
            names=names,
            top=tuple(top),
            trees={entry.path: self._tree(root, entry) for entry in top if entry.kind == "directory"},
            capacity_bytes=room.f_blocks * room.f_frsize,
        )

    def _tree(self, root: int, entry: Entry) -> list[Entry]:
        found: list[Entry] = []
        self._walk(root, entry.path, entry.path, 1, found)
        if len(found) > _MAX_NAMES:
            return [Entry(entry.path, "problem", problem=f"more than {MAX_FILES:,} files")]
        return found

    def _walk(self, parent: int, name: str, path: str, depth: int, found: list[Entry]) -> None:
        """Add everything below one directory, parents before children, until there is too much of it."""
        try:
            directory = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # those: it is gone, or another thing now
                found.append(Entry(path, "problem", problem=f"a directory that cannot be read: {error.strerror}"))
            return
        try:
            for child in sorted(os.listdir(directory)):
                if len(found) > _MAX_NAMES:
                    return
                entry = self._entry(directory, child, f"{path}/{child}")
                if entry is None:
                    continue
                found.append(entry)
                if entry.kind == "directory" and depth >= MAX_DEPTH:
                    found[-1] = Entry(entry.path, "problem", problem=f"deeper than {MAX_DEPTH} directories")
                elif entry.kind == "directory":
                    self._walk(directory, child, entry.path, depth + 1, found)
        finally:
            os.close(directory)

    def _entry(self, directory: int, name: str, path: str) -> Entry | None:
        """One name as facts; None where it is gone again."""
        try:
            found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            return Entry(path, "problem", problem=f"it cannot be looked at: {error.strerror}")
        if stat.S_ISLNK(found.st_mode):
            return self._link(path, found)
        return _facts(path, _kind(found.st_mode), found)

    def _link(self, path: str, link: os.stat_result) -> Entry:
        """A symbolic link, and where it leads if that is a regular file in the models directory."""
        root = os.path.realpath(self._root)
        at = os.path.join(root, path)
        try:
            target = os.path.realpath(at, strict=True)
            found = os.stat(target, follow_symlinks=False)
        except (OSError, ValueError) as error:
            circle = isinstance(error, OSError) and error.errno == errno.ELOOP
            return _facts(path, "link", link, problem=_LINK_HOPS_PROBLEM if circle else "a symbolic link to nothing")
        if not target.startswith(root + os.sep):
            return _facts(path, "link", link, problem="a symbolic link that leaves the models directory")
        if not stat.S_ISREG(found.st_mode):
            return _facts(path, "link", link, problem="a symbolic link to something that is not a file")
        return _facts(path, "link", found, target=target[len(root) + 1 :])

    # --- writers ------------------------------------------------------------------------------------------------------

    def writers(self, files: Sequence[Entry]) -> Writers:
        """Who has these files open for writing, as far as the kernel tells; it stops at the first that is.

        Each file is looked at once more while there can be no writer: one who had it open during the scan, and has
        finished since, left something else behind. Raises: DiskFailed.
        """
        asked = _Asked()
        with local_faults(self._root, "ask for writers"):
            try:
                root = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                return Writers(changed=(".",))
            try:
                for file in files:
                    if not _ask(root, file, asked):
                        break
            finally:
                os.close(root)
        return Writers(tuple(asked.held), frozenset(asked.unknown), tuple(asked.unreadable), tuple(asked.changed))


@dataclass(slots=True)
class _Asked:
    """The answers so far; see ``Writers``."""

    held: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


def _ask(root: int, file: Entry, asked: _Asked) -> bool:
    """Ask about one file; False: no more needs to be asked. Raises OSError."""
    path = file.target or file.path
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=root)
    except (FileNotFoundError, NotADirectoryError):
        asked.changed.append(path)
        return False
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.EIO):
            raise
        asked.unreadable.append((file.path, f"it cannot be read: {error.strerror}"))
        return True
    try:
        held = _lease(descriptor)
        if held:
            asked.held.append(path)
            return False
        if held is None:
            asked.unknown.append(path)
        now = os.fstat(descriptor)
    finally:
        os.close(descriptor)  # and with it the lease
    if (now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino) != (
        file.size_bytes,
        file.mtime_ns,
        file.ctime_ns,
        file.inode,
    ):
        asked.changed.append(path)
        return False
    return True


def open_for_writing(descriptor: int) -> bool | None:
    """Whether anybody has the file of a read-only descriptor open for writing; None where the kernel does not tell."""
    held = _lease(descriptor)
    if held is False:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return held


def _lease(descriptor: int) -> bool | None:
    """Take a read lease. False: taken, so nobody writes. True: somebody does. None: it cannot be asked."""
    try:
        fcntl.fcntl(descriptor, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    return False


def _kind(mode: int) -> Kind:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    if stat.S_ISFIFO(mode):
        return "fifo"
    return "socket" if stat.S_ISSOCK(mode) else "device"


def _kind_unread(name: os.DirEntry[str]) -> Kind:
    """As the directory itself tells it, without a stat: enough to know which names claim which model."""
    if name.is_symlink():
        return "link"
    return "directory" if name.is_dir(follow_symlinks=False) else "file"


def _facts(path: str, kind: Kind, found: os.stat_result, target: str = "", problem: str = "") -> Entry:
    return Entry(
        path=path,
        kind=kind,
        size_bytes=found.st_size,
        mtime_ns=found.st_mtime_ns,
        ctime_ns=found.st_ctime_ns,
        inode=found.st_ino,
        mode=stat.S_IMODE(found.st_mode),
        target=target,
        problem=problem,
    )
