"""Reading request bodies: bounded in size one by one and all together, in time, and when they are compressed."""

from __future__ import annotations

import zlib

from aiohttp import web

from modelsync.edges.http.bodies import BodyPace, blocks
from modelsync.serve.faults import BadRequest, ServerBusy, TooLarge, UnknownEncoding

_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class Bodies:
    """Counts what all bodies together hold in memory.

    Args:
        max_bytes: of one body, compressed or not.
        max_total_bytes: of all bodies that are being read or answered.
    """

    def __init__(self, max_bytes: int, max_total_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_total_bytes = max_total_bytes
        self._pace = BodyPace()
        self.held_bytes = 0

    async def read(self, request: web.Request) -> Body:
        """The body, to be released after use; its bytes are counted as they come.

        Raises:
            TooLarge, UnknownEncoding: before anything is read where the head tells. ServerBusy, BadRequest.
        """
        if (request.content_length or 0) > self._max_bytes:
            raise TooLarge(limit_bytes=self._max_bytes)
        encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding != "identity" and encoding not in _WINDOWS:
            raise UnknownEncoding(encoding=encoding[:40])
        body = Body(self)
        try:
            await self._fill(body, request)
            if encoding != "identity":
                self._inflate(body, encoding)
        except BaseException:
            body.release()
            raise
        return body

    async def _fill(self, body: Body, request: web.Request) -> None:
        if request.content.is_eof():  # small bodies come with their head: no wait, so no timer
            body.append(request.content.read_nowait(-1))
            return
        try:
            async for block in blocks(request, max_bytes=self._max_bytes, pace=self._pace):
                body.append(block)
        except web.HTTPRequestEntityTooLarge as error:
            raise TooLarge(limit_bytes=self._max_bytes) from error

    def _inflate(self, body: Body, encoding: str) -> None:
        inflater = zlib.decompressobj(_WINDOWS[encoding])
        try:
            data = inflater.decompress(body.data, self._max_bytes + 1)
        except zlib.error as error:
            raise BadRequest(reason=f"the body is not {encoding}: {error}") from error
        if len(data) > self._max_bytes:
            raise TooLarge(limit_bytes=self._max_bytes)
        if not inflater.eof or inflater.unused_data:
            raise BadRequest(reason=f"the {encoding} body is cut short, or something follows it")
        body.append(data, instead=True)

    def take(self, size_bytes: int) -> None:
        """Count bytes. Raises ServerBusy if all bodies together would hold too much."""
        if self.held_bytes + size_bytes > self._max_total_bytes:
            raise ServerBusy(reason=f"request bodies hold {self.held_bytes} bytes")
        self.held_bytes += size_bytes


class Body:
    """One body's bytes, in a buffer that arrays may be made on, and written to."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self.data = bytearray()
        self._counted_bytes = 0

    def append(self, block: bytes, *, instead: bool = False) -> None:
        """Add a block, or put one in place of everything."""
        self._bodies.take(len(block))
        self._counted_bytes += len(block)
        if instead:
            self.data = bytearray(block)
        else:
            self.data += block

    def release(self) -> None:
        """The request is answered."""
        self._bodies.held_bytes -= self._counted_bytes
        self._counted_bytes = 0

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *unused: object) -> None:
        self.release()
