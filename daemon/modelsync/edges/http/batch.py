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
from itertools import chain, repeat
from pathlib import Path

from aiohttp import web

from modelsync.core.errors import MalformedMessage
from modelsync.core.ids import Digest
from modelsync.core.transfer.batches import MAX_OBJECT_BYTES, MAX_OBJECTS, NOT_HELD, SIZE_BYTES
from modelsync.edges.disk.durable import local_faults
from modelsync.edges.http import bodies as http_bodies
from modelsync.edges.http.bodies import BodyPace
from modelsync.edges.http.body_gate import BodyGate
from modelsync.edges.http.framing import Framing
from modelsync.ports import NodeApi

_WRITE_BYTES = 1 << 20
"""Read by one hop to a thread and given to the socket at once; or one frame."""
_SAMPLE_BYTES = 128 << 10
"""Of the first block: whether the answer is worth packing."""


class BatchRoutes:
    """Serves small objects that this node holds and has verified."""

    def __init__(self, api: NodeApi, pace: BodyPace, gate: BodyGate, framing: Framing) -> None:
        self._api = api
        self._pace = pace
        self._gate = gate
        self._framing = framing

    def add_to(self, app: web.Application) -> None:
        app.router.add_post("/v1/batch", self.batch)

    async def batch(self, request: web.Request) -> web.StreamResponse:
        """Raises MalformedMessage; ConnectionError: what was announced can no longer be read, so it is broken off."""
        digests = await self._asked(request)
        held = await asyncio.to_thread(_survey, [self._api.object_path(digest) for digest in digests])
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream", "Cache-Control": "no-store"})
        response.content_length = sum(SIZE_BYTES + (size if path else 0) for path, size in held)
        body = _Body(held, response.content_length)
        first = b""
        with self._framing.asked(request) as ask:
            if ask is not None:
                first = await asyncio.to_thread(body.block)
                course = await self._framing.course_of(request, ask, first[:_SAMPLE_BYTES])
                if course is not None:
                    reads = chain([lambda: first], repeat(body.block, body.left_blocks))
                    await self._framing.send(request, response, ask, course, reads, self._gate.count, may_stop=False)
                    return response
        await self._as_it_is(request, response, first, body)
        return response

    async def _as_it_is(self, request: web.Request, response: web.StreamResponse, data: bytes, body: _Body) -> None:
        await response.prepare(request)
        while data or body.left_blocks:
            data = data or await asyncio.to_thread(body.block)
            self._gate.count(len(data), len(data))
            await response.write(data)
            data = b""
        await response.write_eof()

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


class _Body:
    """The bytes of one answer, a block at a time."""

    def __init__(self, held: Sequence[tuple[Path | None, int]], size_bytes: int) -> None:
        self._parts = _parts(held)
        self._over = bytearray()
        self.left_blocks = -(-size_bytes // _WRITE_BYTES)

    def block(self) -> bytes:
        """The next ``_WRITE_BYTES``; fewer at the end. Blocks. Raises ConnectionResetError, DiskFailed."""
        self.left_blocks -= 1
        for part in self._parts:
            self._over += part
            if len(self._over) >= _WRITE_BYTES:
                break
        data = bytes(self._over[:_WRITE_BYTES])
        del self._over[:_WRITE_BYTES]
        return data


def _parts(held: Sequence[tuple[Path | None, int]]) -> Iterator[bytes]:
    for path, size in held:
        yield size.to_bytes(SIZE_BYTES, "big")
        if path:
            yield _read(path, size)


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
