"""Sending a file that this host is still pulling: a model that lies elsewhere is read through here.

What the pull has verified leaves by sendfile(2), as everything else does, and is neither read nor hashed here. This
file must not know who pulls, in which order or from whom: a map says which bytes are there. The file that grows is
opened once; when it is whole it gets another name, and the descriptor still reads it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path
from typing import BinaryIO

from aiohttp import web

from modelsync.core.transfer.chunk_map import ChunkMap
from modelsync.edges.disk.durable import local_faults
from modelsync.edges.http.body_gate import BodyGate
from modelsync.edges.http.ranges import WARM_BYTES, Download, Span, answer_to, hang_up
from modelsync.ports import Growing

_POLL_FIRST_S = 0.001
_POLL_MORE_S = 0.004
_POLL_LATEST_S = 0.02
"""How often it is looked for more. The first byte is expected within milliseconds; later what has come meanwhile leaves
in one go: with 1 ms instead of 4 reading 512 MiB through cost 1.4 times a pull on two processors instead of 1.2."""


async def send_growing(
    request: web.Request, growing: Growing, headers: dict[str, str], gate: BodyGate
) -> web.StreamResponse:
    """Answer with a published file, or the range of it that was asked for, as its chunks arrive.

    Args:
        gate: places for bodies of this kind, which may have to wait in the middle.
    Raises:
        ModelsyncError: the pull failed before anything was sent.
        web.HTTPServiceUnavailable: too many such bodies are under way.
        ConnectionError: it failed later; the connection is broken off, so that a short body is never taken for a
            whole one.
    """
    entry = growing.entry
    download = Download(growing.object, str(entry.digest), headers)
    response, span = answer_to(request, download, entry.size_bytes)
    if span is None or request.method == "HEAD":
        return response
    async with gate.place():
        coming = _Coming(growing)
        try:
            there = await _first(coming, span) if span.count_bytes else 0
            await response.prepare(request)
            if span.count_bytes:
                await _send(request, coming, span, there, gate)
            await response.write_eof()
        finally:
            coming.close()
    return response


async def _first(coming: _Coming, span: Span) -> int:
    """Wait until there is something to send; where it ends. Raises what the pull raised."""
    pause_s = _POLL_FIRST_S
    while True:
        pull = coming.growing.pull
        over = pull.done()  # asked before looking: what is not there then will never be
        there = await asyncio.to_thread(coming.look, span.offset_bytes)
        if there > span.offset_bytes:
            return there
        if over:
            pull.result()
            raise ConnectionResetError("the file was removed before it was sent")
        await asyncio.wait({pull}, timeout=pause_s)
        pause_s = min(2 * pause_s, _POLL_LATEST_S)


async def _send(request: web.Request, coming: _Coming, span: Span, there: int, gate: BodyGate) -> None:
    if request.transport is None:
        raise ConnectionResetError("the receiver left")
    gate.count(span.count_bytes, span.count_bytes)
    try:
        file = coming.file
        sent = await gate.sender.send(
            request.transport, file, span.offset_bytes, span.count_bytes, there=there, more=coming.wait
        )
    except ConnectionError:
        raise
    except (OSError, RuntimeError) as error:  # a disk fault, or the transport closed under us
        hang_up(request, error)
    if sent != span.count_bytes:
        hang_up(request, OSError(f"the pull ended with {sent} of {span.count_bytes} bytes"))


class _Coming:
    """One file under way: opened once, and asked again and again how far it is."""

    def __init__(self, growing: Growing) -> None:
        self.growing = growing
        self._size_bytes = growing.entry.size_bytes
        self._file: BinaryIO | None = None
        self._chunks: ChunkMap | None = None
        """What is verified of the opened file; None of one that is whole."""

    @property
    def file(self) -> BinaryIO:
        assert self._file is not None, "something was there, so it is open"
        return self._file

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def look(self, start: int) -> int:
        """Where the bytes end that are there from ``start`` on; ``start`` while there are none. Raises DiskFailed."""
        with local_faults(self.growing.object, "read"):
            if self._file is None:
                self._open()
            else:
                self._go_on(self._file)
            if self._file is None:
                return start
            if self._chunks is None:
                return self._size_bytes
            there = min(self._chunks.end_from(start), start + WARM_BYTES)
            if there > start:
                _warm(self._file, start, there)
            return there

    def wait(self, start: int, over: threading.Event) -> int:
        """The same once there is something; ``start`` where nothing will come any more, or ``over`` is set."""
        pause_s = _POLL_MORE_S
        while True:
            ended = over.is_set() or self.growing.pull.done()
            there = self.look(start)
            if there > start or ended:
                return there
            over.wait(pause_s)
            pause_s = min(2 * pause_s, _POLL_LATEST_S)

    def _open(self) -> None:
        """The whole file if it has its name already, else the one that grows."""
        part = self.growing.part()
        if part is None:
            self._file = _opened(self.growing.object)
            return
        file = _opened(part.path)
        now = self.growing.part()
        if file is None or now is None or now.chunks is not part.chunks:  # the map may be of another file than this
            if file is not None:
                file.close()
            return
        # Nothing beyond what is verified may get into the page cache while it is still written past it.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        self._file, self._chunks = file, part.chunks

    def _go_on(self, file: BinaryIO) -> None:
        """A pull that failed may have been begun anew by another: of the same file it knows more.

        Once the file has its name all of it is there, also what was copied from old versions, which the map never had.
        """
        if self._chunks is None:
            return
        part = self.growing.part()
        if part is None and _is_at(self.growing.object, file):
            self._chunks = None
        elif part is not None and part.chunks is not self._chunks and _is_at(part.path, file):
            self._chunks = part.chunks


def _warm(file: BinaryIO, start: int, end: int) -> None:
    """Have what was written past the page cache read in large pieces."""
    try:
        os.preadv(file.fileno(), [bytearray(1)], start, os.RWF_NOWAIT)
    except BlockingIOError:
        os.posix_fadvise(file.fileno(), start, end - start, os.POSIX_FADV_WILLNEED)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise


def _is_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _opened(path: Path) -> BinaryIO | None:
    try:
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb", buffering=0)
    except FileNotFoundError:
        return None
