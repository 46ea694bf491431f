"""Range and conditional headers of a download, and the sending of a file.

This file alone decides what ``Range``, ``If-Range``, ``If-Match`` and ``If-None-Match`` mean here, and gets bytes from
a file to a socket. aiohttp's own FileResponse was weighed and left: its ETag is made of time and size, it looks for
compressed siblings of the path, and an error half way is not seen by the receiver. Which file it is, the
caller decides.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from aiohttp import web

from modelsync.edges.disk.durable import local_faults
from modelsync.edges.http.body_gate import BodyGate
from modelsync.edges.http.framing import Framing, Part, reads_of
from modelsync.edges.http.sending import Sender

READ_BYTES = 1 << 20
"""Of the fallback for an event loop without sendfile; one manifest chunk."""
SMALL_BYTES = 256 << 10
"""Up to here a file is answered from memory: manifests, and models of which the wait matters more than the bytes."""
WARM_BYTES = 8 << 20
"""Asked of the disk ahead of sendfile, which would otherwise hold up the event loop for each cold page."""

_GIVEN_UP = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN)
"""What the kernel says of a connection to a host without power or way. No disk says that."""

_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{1,18})?|-([0-9]{1,18}))")


@dataclass(frozen=True, slots=True)
class Download:
    """What goes out: a file that was found by digest or by manifest, and how a receiver may treat it."""

    path: Path
    etag: str | None
    """A strong validator without its quotes: the digest."""
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Span:
    """A byte range of a file of known size. ``partial``: it was asked for as a range, so the answer is a 206."""

    offset_bytes: int
    count_bytes: int
    partial: bool


def span_of(range_header: str | None, size_bytes: int) -> Span | None:
    """The bytes that a Range header asks for; None where it cannot be satisfied.

    One range only: RFC 9110, section 14.2 lets a server reject several, and no peer of ours sends them. Another unit
    than bytes is ignored, as the same section asks.
    """
    if range_header is None or not range_header.lower().startswith("bytes"):
        return Span(0, size_bytes, partial=False)
    match = _RANGE.fullmatch(range_header.strip())
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        offset, end = max(0, size_bytes - int(suffix)), size_bytes
    else:
        offset, end = int(first), min(size_bytes, int(last) + 1 if last is not None else size_bytes)
    return Span(offset, end - offset, partial=True) if offset < end else None


async def send(
    request: web.Request, download: Download, gate: BodyGate, framing: Framing | None = None
) -> web.StreamResponse:
    """Answer with a file or the part of it that was asked for.

    Args:
        framing: packs it where the receiver understands that and it pays.
    Raises:
        web.HTTPNotFound: it is gone, or is no regular file.
        web.HTTPServiceUnavailable: too many bodies are under way.
        DiskFailed: it cannot be opened.
        ConnectionError: the receiver left, or the disk failed half way; the connection is broken off, so that a short
            body is never taken for a whole one.
    """
    file, size_bytes, whole = await asyncio.to_thread(_open, download.path)
    try:
        response, span = answer_to(request, download, size_bytes)
        if span is None or request.method == "HEAD":
            return response
        if len(whole) == size_bytes:
            return _small(response, whole[span.offset_bytes : span.offset_bytes + span.count_bytes])
        async with gate.place():
            await asyncio.to_thread(_warm, file, span)
            if not (framing and span.partial and await _framed(request, response, download, file, span, gate, framing)):
                gate.count(span.count_bytes, span.count_bytes)
                await response.prepare(request)
                if span.count_bytes:
                    await _transfer(request, response, file, span, gate.sender)
                await response.write_eof()
                if framing is not None:
                    framing.sent_plain(request)
        return response
    finally:
        file.close()


async def _framed(
    request: web.Request,
    response: web.StreamResponse,
    download: Download,
    file: BinaryIO,
    span: Span,
    gate: BodyGate,
    framing: Framing,
) -> bool:
    """Send a range in frames, if that is asked for and pays. Nothing was sent where it does not."""
    part = Part(file, download.etag or "", span.offset_bytes, span.offset_bytes + span.count_bytes)
    with framing.asked(request) as ask:
        if ask is None:
            return False
        with local_faults(download.path, "read"):
            course = await framing.course(request, ask, part)
        if course is None:
            return False
        reads = reads_of(part, ask.chunk_bytes)
        try:
            await framing.send(request, response, ask, course, reads, gate.count, may_stop=True)
        except ConnectionError:
            raise
        except OSError as error:
            hang_up(request, error)
    return True


def _small(response: web.StreamResponse, body: bytes) -> web.Response:
    headers = response.headers.copy()
    headers.pop("Content-Length", None)  # aiohttp counts the body itself
    return web.Response(status=response.status, headers=headers, body=body)


def _open(path: Path) -> tuple[BinaryIO, int, bytes]:
    """The file, its size, and its bytes if they are few: then one thread and one write are all that it takes."""
    with local_faults(path, "open"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError as error:
            raise web.HTTPNotFound(text="this node no longer holds it") from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise web.HTTPNotFound(text="this node does not hold it")
            whole = os.pread(descriptor, SMALL_BYTES, 0) if status.st_size <= SMALL_BYTES else b""
            return os.fdopen(descriptor, "rb", buffering=0), status.st_size, whole
        except BaseException:
            os.close(descriptor)
            raise


def _warm(file: BinaryIO, span: Span) -> None:
    os.posix_fadvise(file.fileno(), span.offset_bytes, min(span.count_bytes, WARM_BYTES) or 1, os.POSIX_FADV_WILLNEED)


def answer_to(request: web.Request, download: Download, size_bytes: int) -> tuple[web.StreamResponse, Span | None]:
    """The response with its headers, and what to send after them; None: nothing."""
    headers = {**download.headers, "Accept-Ranges": "bytes"}
    if download.etag is not None:
        headers["ETag"] = f'"{download.etag}"'
    if not _matches(request.headers.get("If-Match"), download.etag, default=True):
        return web.Response(status=412, headers=headers), None
    if _matches(request.headers.get("If-None-Match"), download.etag, default=False):
        return web.Response(status=304, headers=headers), None
    asked = request.headers.get("Range")
    if not _matches(request.headers.get("If-Range"), download.etag, default=True):
        asked = None
    span = span_of(asked, size_bytes)
    if span is None:
        return web.Response(status=416, headers={**headers, "Content-Range": f"bytes */{size_bytes}"}), None
    response = web.StreamResponse(status=206 if span.partial else 200, headers=headers)
    response.content_length = span.count_bytes
    if span.partial:
        last = span.offset_bytes + span.count_bytes - 1
        response.headers["Content-Range"] = f"bytes {span.offset_bytes}-{last}/{size_bytes}"
    return response, span


def _matches(header: str | None, etag: str | None, *, default: bool) -> bool:
    if header is None:
        return default
    tags = {tag.strip().removeprefix("W/").strip('"') for tag in header.split(",")}
    return "*" in tags or (etag is not None and etag in tags)


async def _transfer(
    request: web.Request, response: web.StreamResponse, file: BinaryIO, span: Span, sender: Sender
) -> None:
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the receiver left")
    try:
        sent = await sender.send(transport, file, span.offset_bytes, span.count_bytes)
    except NotImplementedError:  # an event loop of another make
        sent = await _copy(response, file, span)
    except ConnectionError:
        raise
    except (OSError, RuntimeError) as error:  # a disk fault, or the transport closed under us
        hang_up(request, error)
    if sent != span.count_bytes:  # truncated under us: the receiver must not take this for the whole
        transport.abort()
        raise ConnectionResetError("hung up") from OSError(errno.EIO, f"{sent} of {span.count_bytes} bytes were left")


def hang_up(request: web.Request, error: Exception) -> NoReturn:
    """Break the connection off, so that a short body is never taken for a whole one. Raises ConnectionResetError."""
    if request.transport is not None:
        request.transport.abort()
    if isinstance(error, OSError) and error.errno in _GIVEN_UP:
        raise ConnectionResetError(f"the receiver is gone: {error.strerror}") from None
    raise ConnectionResetError(str(error)) from error


async def _copy(response: web.StreamResponse, file: BinaryIO, span: Span) -> int:
    sent = 0
    while sent < span.count_bytes:
        size = min(READ_BYTES, span.count_bytes - sent)
        data = await asyncio.to_thread(os.pread, file.fileno(), size, span.offset_bytes + sent)
        if not data:
            break
        await response.write(data)
        sent += len(data)
    return sent
