"""Many small objects in one answer: ``POST /v1/batch``.

A request for each of 5,000 small files costs more than their bytes. The body names objects by their 32-byte digests,
one after another; the answer holds for each, in that order, its size in 8 bytes (big-endian) and its bytes; a size of
2^64-1 stands for one that this node does not hold or that is not small.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from aiohttp import web

from modelsync.core.errors import MalformedMessage
from modelsync.core.ids import Digest
from modelsync.core.transfer.batches import MAX_OBJECT_BYTES, MAX_OBJECTS, NOT_HELD, SIZE_BYTES
from modelsync.edges.disk.durable import local_faults
from modelsync.edges.http import bodies as http_bodies
from modelsync.edges.http.bodies import BodyPace
from modelsync.ports import NodeApi

_WRITE_BYTES = 1 << 20
"""Read by one hop to a thread and given to the socket at once."""


class BatchRoutes:
    """Serves small objects that this node holds and has verified."""

    def __init__(self, api: NodeApi, pace: BodyPace) -> None:
        self._api = api
        self._pace = pace

    def add_to(self, app: web.Application) -> None:
        app.router.add_post("/v1/batch", self.batch)

    async def batch(self, request: web.Request) -> web.StreamResponse:
        """Raises MalformedMessage; ConnectionError: what was announced can no longer be read, so it is broken off."""
        digests = await self._asked(request)
        held = await asyncio.to_thread(_survey, [self._api.object_path(digest) for digest in digests])
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream", "Cache-Control": "no-store"})
        response.content_length = sum(SIZE_BYTES + (size if path else 0) for path, size in held)
        await response.prepare(request)
        parts = _parts(held)
        while data := await asyncio.to_thread(_next, parts):
            await response.write(data)
        await response.write_eof()
        return response

    async def _asked(self, request: web.Request) -> list[Digest]:
        most_bytes, data = 32 * MAX_OBJECTS, bytearray()
        async for block in http_bodies.blocks(request, max_bytes=most_bytes, pace=self._pace):
            data += block
        if not data or len(data) % 32:
            raise MalformedMessage(what="batch", reason=f"{len(data)} bytes are not digests of 32 bytes")
        return [Digest(bytes(data[at : at + 32])) for at in range(0, len(data), 32)]


def _survey(paths: Sequence[Path | None]) -> list[tuple[Path | None, int]]:
    return [(path, size) if path and (size := _size(path)) is not None else (None, NOT_HELD) for path in paths]


def _size(path: Path) -> int | None:
    try:
        info = os.stat(path, follow_symlinks=False)
    except OSError:  # collected since it was looked up, or unreadable: either way not to be had here
        return None
    return info.st_size if stat.S_ISREG(info.st_mode) and info.st_size <= MAX_OBJECT_BYTES else None


def _parts(held: Sequence[tuple[Path | None, int]]) -> Iterator[bytes]:
    for path, size in held:
        yield size.to_bytes(SIZE_BYTES, "big")
        if path:
            yield _read(path, size)


def _next(parts: Iterator[bytes]) -> bytes:
    """About ``_WRITE_BYTES`` of the answer; nothing at its end. Raises ConnectionResetError, DiskFailed."""
    data = bytearray()
    for part in parts:
        data += part
        if len(data) >= _WRITE_BYTES:
            break
    return bytes(data)


def _read(path: Path, size: int) -> bytes:
    with local_faults(path, "read"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError as error:  # collected meanwhile: the receiver must not take what follows for it
            raise ConnectionResetError(str(path)) from error
        try:
            data = os.pread(descriptor, size, 0)
        finally:
            os.close(descriptor)
    if len(data) != size:
        raise ConnectionResetError(str(path))
    return data
