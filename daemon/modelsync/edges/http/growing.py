"""Sending a file that this host is still pulling: a model that lies elsewhere is read through here.

Each chunk goes out once it is whole, and is verified here against the manifest whoever wrote it: this file need not
know who pulls, in which order or from whom. The file that grows is opened once; when it is whole it gets another name,
and the descriptor still reads it.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from aiohttp import web
from blake3 import blake3

from modelsync.core.manifest import FileEntry
from modelsync.edges.disk.durable import local_faults
from modelsync.edges.http.ranges import span_of
from modelsync.ports import Growing

_POLL_FIRST_S = 0.001
_POLL_LATEST_S = 0.02
"""How often a chunk that is not there yet is looked for: a first byte is expected within milliseconds."""


async def send_growing(request: web.Request, growing: Growing, headers: dict[str, str]) -> web.StreamResponse:
    """Answer with a published file, or the range of it that was asked for, as its chunks arrive.

    Raises:
        ModelsyncError: the pull failed before anything was sent.
        ConnectionError: it failed later; the connection is broken off, so that a short body is never taken for a
            whole one.
    """
    entry = growing.entry
    span = span_of(request.headers.get("Range"), entry.size_bytes)
    if span is None:
        return web.Response(status=416, headers={**headers, "Content-Range": f"bytes */{entry.size_bytes}"})
    response = web.StreamResponse(status=206 if span.partial else 200, headers={**headers, "ETag": f'"{entry.digest}"'})
    end = span.offset_bytes + span.count_bytes
    if span.partial:
        response.headers["Content-Range"] = f"bytes {span.offset_bytes}-{end - 1}/{entry.size_bytes}"
    response.content_length = span.count_bytes
    if request.method == "HEAD":
        return response
    reader = _Reader(growing)
    try:
        for index in _chunks_of(entry, span.offset_bytes, end):
            data = await reader.chunk(index)
            if not response.prepared:
                await response.prepare(request)
            offset, _ = entry.chunk_range(index)
            await response.write(data[max(0, span.offset_bytes - offset) : end - offset])
        if not response.prepared:
            await response.prepare(request)
        await response.write_eof()
    except Exception:
        if response.prepared and request.transport is not None:
            request.transport.abort()
        raise
    finally:
        reader.close()
    return response


def _chunks_of(entry: FileEntry, start: int, end: int) -> Iterator[int]:
    for index in range(entry.chunk_count):
        offset, size = entry.chunk_range(index)
        if offset < end and offset + size > start:
            yield index


class _Reader:
    """Chunks of one file under way, each verified before it is handed out."""

    def __init__(self, growing: Growing) -> None:
        self._growing = growing
        self._descriptor = -1

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    async def chunk(self, index: int) -> bytes:
        """Wait for it. Raises what the pull raised."""
        pause_s = _POLL_FIRST_S
        while True:
            finished = self._growing.pull.done()  # asked before looking: what is not there then will never be
            data = await asyncio.to_thread(self._look, index)
            if data is not None:
                return data
            if finished:
                self._growing.pull.result()
                raise ConnectionResetError("the file was removed while it was sent")
            await asyncio.wait({self._growing.pull}, timeout=pause_s)
            pause_s = min(2 * pause_s, _POLL_LATEST_S)

    def _look(self, index: int) -> bytes | None:
        with local_faults(self._growing.partial, "read"):
            if not self._open():
                return None
            offset, size = self._growing.entry.chunk_range(index)
            if not _has_data(self._descriptor, offset):
                return None
            data = os.pread(self._descriptor, size, offset)
        right = len(data) == size and blake3(data).digest() == self._growing.chunks[index].raw
        return data if right else None

    def _open(self) -> bool:
        """The whole file if it has its name already, else the one that grows: the same bytes from either."""
        if self._descriptor >= 0:
            return True
        for path in (self._growing.object, self._growing.partial):
            if (found := _opened(path)) is not None:
                self._descriptor = found
                return True
        return False


def _opened(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def _has_data(descriptor: int, offset: int) -> bool:
    """Whether anything was written there: what is only preallocated need not be hashed to be found wrong."""
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA) == offset
    except OSError as error:
        if error.errno == errno.ENXIO:
            return False
        raise
