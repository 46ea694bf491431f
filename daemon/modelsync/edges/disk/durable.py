"""Making names and bytes survive a power cut: the only file that calls fsync, rename and symlink.

Rule of the house: bytes are fsynced before they are named, and the directory is fsynced after. An fsync that fails is
never tried again on that descriptor, since the kernel may have dropped the dirty pages and would then report success
(PostgreSQL's "fsyncgate", 2018): the file is discarded and the caller starts over.

This file knows nothing of models; it knows files and directories.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from modelsync.core.errors import (
    DiskFailed,
    DiskFull,
    DiskReadOnly,
    LocalFault,
    NotPermitted,
    OutOfDescriptors,
)

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SPECIAL = {
    errno.EROFS: DiskReadOnly,
    errno.EMFILE: OutOfDescriptors,
    errno.ENFILE: OutOfDescriptors,
    errno.EACCES: NotPermitted,
    errno.EPERM: NotPermitted,
}
"""Faults that an operator ends in another way than by replacing a disk."""


@contextlib.contextmanager
def local_faults(path: Path | str, operation: str) -> Iterator[None]:
    """Translate this host's OSErrors, here and nowhere else. Raises DiskFull, DiskFailed."""
    try:
        yield
    except OSError as error:
        raise translated(error, path, operation) from error


def translated(error: OSError, path: Path | str, operation: str) -> LocalFault:
    """The error of ours that says what this OSError means to an operator."""
    if error.errno in _FULL:
        return DiskFull(path=str(path))
    number = error.errno or 0
    kind = _SPECIAL.get(number, DiskFailed)
    return kind(path=str(path), operation=operation, errno_name=errno.errorcode.get(number, str(number)))


def fsync_directory(path: Path | str) -> None:
    """Make the names in a directory durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directories(path: Path) -> None:
    """Create a directory and what is missing above it, each made durable in its parent. Raises OSError."""
    if path.is_dir():
        return
    make_directories(path.parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o755)
    fsync_directory(path.parent)


def temporary_name(prefix: str) -> str:
    """A name nobody else uses; the sweep at start knows it by the ``.tmp`` at its end."""
    return f"{prefix[:80]}.{secrets.token_hex(8)}.tmp"


def create_file(path: Path, mode: int = 0o600) -> int:
    """Open a file that did not exist, for reading and writing, never through a symbolic link. Raises OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, mode)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write every byte; write(2) may take fewer than it is given. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def replace_file(path: Path, data: bytes, mode: int = 0o644, *, beside: Path | None = None) -> None:
    """Replace a small file whole: the old or the new content survives any crash. Raises DiskFull, DiskFailed.

    ``beside``: a directory for the temporary file, where others read the target's own; on the same file system.
    """
    with local_faults(path, "replace"):
        make_directories(path.parent)
        temporary = (beside or path.parent) / temporary_name(path.name)
        descriptor = create_file(temporary, mode)
        try:
            try:
                write_all(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        fsync_directory(path.parent)


def replace_directory(path: Path, fresh: Path, aside: Path) -> None:
    """Put a directory where another one may be; that one is then ``aside``. Not durable, and for an instant neither is
    there: who looks just then must take a missing name for nothing new. Raises OSError, with the old one in its place.
    """
    replaced = path.exists()
    if replaced:
        os.rename(path, aside)
    try:
        os.rename(fresh, path)
    except OSError:
        if replaced:
            os.rename(aside, path)
        raise


def replace_symlinks(directory: Path, targets: Sequence[tuple[str, str]], *, beside: Path | None = None) -> None:
    """Point symbolic links of one directory elsewhere, one after another and each in one step; then one fsync.

    Args:
        targets: (name, target). A reader sees each link's old or new target, and never a later link before an earlier.
        beside: a directory for the temporary links, where others read the links' own; on the same file system.
    Raises: OSError: the links before the one that failed are switched.
    """
    switch_symlinks(directory, targets, beside=beside)
    fsync_directory(directory)


def switch_symlinks(directory: Path, targets: Sequence[tuple[str, str]], *, beside: Path | None = None) -> None:
    """As ``replace_symlinks``, and the fsync is the caller's. Raises OSError."""
    for name, target in targets:
        temporary = (beside or directory) / temporary_name(name)
        os.symlink(target, temporary)
        try:
            os.rename(temporary, directory / name)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


_libc = ctypes.CDLL(None, use_errno=True)
_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h: start write-out of dirty pages, wait for nothing


def start_writeback(descriptor: int, offset_bytes: int, size_bytes: int) -> None:
    """Ask the kernel to begin writing a range now, so that the one fsync at the end finds little left to do.

    A hint: an error means only that the fsync does all the work, and it reports the real fault.
    """
    _libc.sync_file_range(descriptor, ctypes.c_int64(offset_bytes), ctypes.c_int64(size_bytes), _SYNC_FILE_RANGE_WRITE)


@contextlib.contextmanager
def filesystem_barrier(path: Path | str) -> Iterator[Callable[[], None]]:
    """Give a function that makes all that was written since durable: one syncfs(2) for many small files, where an
    fsync for each would cost a journal commit for each.

    The descriptor is opened before the writes, because from Linux 5.8 on syncfs reports the write-back errors since
    its descriptor was opened. Raises OSError, and the function does.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def sync() -> None:
        if _libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))

    try:
        yield sync
    finally:
        os.close(descriptor)


def free_bytes(path: Path | str) -> int:
    """What an unprivileged process may still write there. Raises OSError."""
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize
