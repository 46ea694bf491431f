"""What a publish sends: one file as it is, or a directory as multipart/form-data, read as it goes.

This file alone decides how a local path becomes a request body. It knows no HTTP library; ``upload_client`` sends it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import stat
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from modelsync.core.errors import MalformedMessage, NotAModel, SourceChanged
from modelsync.core.manifest import MAX_FILES, published_path
from modelsync.edges.disk.durable import local_faults

BLOCK_BYTES = 1 << 20
"""Read at a time; one of them is in memory."""


@dataclass(frozen=True, slots=True)
class OutgoingFile:
    """A regular file as it was found; any difference when it is read means that it changed."""

    path: Path
    name: str
    """As it will be published: relative, ``/`` between its parts."""
    size_bytes: int
    mtime_ns: int


def files_of(path: Path) -> tuple[OutgoingFile, ...]:
    """The files below a path, or the file that it is, sorted by name. Blocks.

    Raises:
        NotAModel: nothing there, no file in it, or something that is neither file nor directory.
        BadName: a name that could not be published.
        DiskFailed: it cannot be read.
    """
    with local_faults(path, "scan"):
        if not path.is_dir():
            return (_outgoing(path, path.name),)
        found = []
        for directory, subdirectories, names in os.walk(path, onerror=_raise):
            links = [name for name in subdirectories if (Path(directory) / name).is_symlink()]
            for name in [*names, *links]:
                child = Path(directory) / name
                found.append(_outgoing(child, child.relative_to(path).as_posix()))
    if not 0 < len(found) <= MAX_FILES:
        raise NotAModel(path=str(path), reason=f"it holds {len(found)} files; 1 to {MAX_FILES} can be published")
    return tuple(sorted(found, key=lambda file: file.name))


def _raise(error: OSError) -> None:
    raise error


def _outgoing(path: Path, name: str) -> OutgoingFile:
    try:
        status = os.lstat(path)
    except FileNotFoundError as error:
        raise NotAModel(path=str(path), reason="there is nothing there") from error
    if not stat.S_ISREG(status.st_mode):
        raise NotAModel(path=str(path), reason="it is neither a file nor a directory; links are not followed")
    return OutgoingFile(path, published_path(name), status.st_size, status.st_mtime_ns)


def open_same(file: OutgoingFile) -> int:
    """Open a file that is what it was when it was found. Blocks. Raises SourceChanged."""
    try:
        descriptor = os.open(file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SourceChanged(path=str(file.path)) from error
    try:
        require_same(descriptor, file)
    except SourceChanged:
        os.close(descriptor)
        raise
    return descriptor


def require_same(descriptor: int, file: OutgoingFile) -> None:
    """Raises SourceChanged."""
    status = os.fstat(descriptor)
    if (status.st_size, status.st_mtime_ns) != (file.size_bytes, file.mtime_ns):
        raise SourceChanged(path=str(file.path))


class OutgoingBody:
    """A body that can be sent any number of times (a redirect asks for it again), with its exact size.

    Args:
        files: what to send; more than one, or a path with ``/``, makes it multipart.
        whole: send the one file as it is, without multipart.
        fields: what is said about them, ahead of them; a body that is one whole file has none.
        on_progress: told (sent, total) in bytes after each block.
    """

    def __init__(
        self,
        files: tuple[OutgoingFile, ...],
        *,
        whole: bool,
        fields: Mapping[str, str],
        on_progress: Callable[[int, int], None],
    ) -> None:
        assert not (whole and fields)
        self._files = files
        self._whole = whole
        self._on_progress = on_progress
        self._boundary = secrets.token_hex(16)
        self._fields = b"".join(self._field(name, text) for name, text in fields.items())
        self.failure: SourceChanged | None = None
        """Why the last sending broke off, where that was the file's doing: an HTTP library hides it in its own."""

    @property
    def content_type(self) -> str:
        """For the Content-Type header."""
        return "application/octet-stream" if self._whole else f"multipart/form-data; boundary={self._boundary}"

    @property
    def size_bytes(self) -> int:
        """For the Content-Length header: so that the receiver can refuse before anything is sent."""
        content = sum(file.size_bytes for file in self._files)
        if self._whole:
            return content
        return len(self._fields) + content + sum(len(self._head(file)) + 2 for file in self._files) + len(self._end())

    async def blocks(self) -> AsyncIterator[bytes]:
        """The bytes, from the start. Sets ``failure`` and raises SourceChanged if a file is not what it was."""
        sent, total = 0, self.size_bytes
        try:
            async for block in self._pieces():
                yield block
                sent += len(block)
                self._on_progress(sent, total)
        except SourceChanged as error:
            self.failure = error
            raise

    async def _pieces(self) -> AsyncIterator[bytes]:
        if self._fields:
            yield self._fields
        for file in self._files:
            if not self._whole:
                yield self._head(file)
            async for block in self._content(file):
                yield block
            if not self._whole:
                yield b"\r\n"
        if not self._whole:
            yield self._end()

    async def _content(self, file: OutgoingFile) -> AsyncIterator[bytes]:
        descriptor = await asyncio.to_thread(open_same, file)
        try:
            offset = 0
            while offset < file.size_bytes:
                size = min(BLOCK_BYTES, file.size_bytes - offset)
                block = await asyncio.to_thread(os.pread, descriptor, size, offset)
                if not block:
                    raise SourceChanged(path=str(file.path))
                offset += len(block)
                yield block
            require_same(descriptor, file)
        finally:
            os.close(descriptor)

    def _head(self, file: OutgoingFile) -> bytes:
        if '"' in file.name:
            # A quote has two spellings in the wild (RFC 7578 section 2 and browsers); none of ours needs one.
            raise MalformedMessage(what="upload", reason=f"{file.name!r} has a quotation mark in its name")
        return (
            f"--{self._boundary}\r\n"
            f'Content-Disposition: form-data; name="file"; filename="{file.name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()

    def _field(self, name: str, text: str) -> bytes:
        return f'--{self._boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'.encode()

    def _end(self) -> bytes:
        return f"--{self._boundary}--\r\n".encode()
