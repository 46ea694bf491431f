"""Answers in frames: chunks that are packed on their way out, where core.compression.choice says that this pays.

Packing runs in threads of its own, one chunk ahead of the socket, and never on the event loop. This file must not know
what a request's range means, nor how a chunk is packed. PROTOCOL.md section 6.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import BinaryIO, TypeVar

from aiohttp import web

from modelsync.core.compression import choice
from modelsync.core.compression.choice import Course, Link, Trial
from modelsync.core.compression.frames import ASK_HEADER, FORMAT, RAW, STOP, Ask, Compression, Head, parse_ask, pieces
from modelsync.core.compression.pace import Pace
from modelsync.core.compression.way import Way
from modelsync.edges.http.link_speed import LinkSpeeds
from modelsync.edges.pull import codec

MAX_ANSWERS = 16
"""In frames at once; each holds up to four chunks, with what lies in the socket's buffers. Others go as they are."""
PACKERS = max(1, min(4, (os.cpu_count() or 1) // 2))
"""Threads: half of the processors are for those who serve models with them."""
REGION_BYTES = 64 << 20
"""What one probe stands for."""
SAMPLES, SAMPLE_BYTES = 4, 64 << 10
"""Of a region, or of a chunk that is tried anew: together one to two and a half milliseconds of one processor. Half as
much makes every way to pack look a third slower than it is, and byte planes look useless."""
_LEAST_CPU_S = 0.0005
"""Of a frame, to tell anything by the time that it took beside."""
_REMEMBERED = 1024
"""Links and probes."""

Result = TypeVar("Result")
Key = TypeVar("Key")
Value = TypeVar("Value")
Read = Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Part:
    """A range of an open file that is to be sent. ``name`` is its digest: what was probed of it is remembered."""

    file: BinaryIO
    name: str
    offset: int
    end: int


class Framing:
    """What all framed answers of a server share.

    Args:
        mode: ``[transfer] compression``, read anew for each request.
    """

    def __init__(self, mode: Callable[[], Compression]) -> None:
        self._mode = mode
        self._threads = ThreadPoolExecutor(PACKERS, "pack")
        self._answers = 0
        self._speeds = LinkSpeeds()
        self._ways: OrderedDict[str, Way] = OrderedDict()
        self._held_up = Pace(1.0)
        self._probes: OrderedDict[tuple[str, int], tuple[Trial, ...]] = OrderedDict()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    @contextlib.contextmanager
    def asked(self, request: web.Request) -> Iterator[Ask | None]:
        """What the puller would take, if this node gives it, and a place for it meanwhile; None: send it as it is."""
        ask = parse_ask(request.headers.get(ASK_HEADER))
        mode = choice.agreed(ask.mode, self._mode()) if ask else "never"
        if ask is None or mode == "never" or not codec.AVAILABLE or self._answers >= MAX_ANSWERS:
            yield None
            return
        self._answers += 1
        try:
            yield replace(ask, mode=mode)
        finally:
            self._answers -= 1

    async def course(self, request: web.Request, ask: Ask, part: Part) -> Course | None:
        """How to send a range in frames; None: as it is. Raises OSError."""
        key = (part.name, part.offset // REGION_BYTES)
        trials = self._probes.get(key)
        if trials is None:
            trials = await self._in_thread(lambda: codec.tried(_sampled(part)))
            _remember(self._probes, key, trials)
        return self._begun(request, ask, trials)

    async def course_of(self, request: web.Request, ask: Ask, sample: bytes) -> Course | None:
        """The same of bytes that are in memory."""
        return self._begun(request, ask, await self._in_thread(lambda: codec.tried(sample)))

    def _begun(self, request: web.Request, ask: Ask, trials: tuple[Trial, ...]) -> Course | None:
        if choice.best(trials, self._link(request, ask), ask.mode) is None and ask.mode != "always":
            return None
        course = Course(ask.mode)
        course.tried(trials)
        return course

    async def send(
        self,
        request: web.Request,
        response: web.StreamResponse,
        ask: Ask,
        course: Course,
        reads: Iterator[Read],
        sent: Callable[[int, int], None],
        *,
        may_stop: bool,
    ) -> None:
        """Send what the reads give, each as a frame.

        Args:
            course: as begun for these bytes.
            reads: each gives a chunk, in a thread of this class; there is one at least.
            sent: told of each (its size, its size on the wire).
            may_stop: the puller asks again for what does not come.
        Raises:
            OSError: the disk's, or ConnectionError where the receiver left.
        """
        response.headers[ASK_HEADER] = FORMAT
        response.headers.pop("Content-Length", None)
        response.enable_chunked_encoding()
        coming: asyncio.Future[_Frame] | None = None
        plain: bool | None = None
        try:
            await response.prepare(request)
            coming = self._packed(course, next(reads), self._link(request, ask))
            while coming is not None:
                frame: _Frame | None = await coming
                read = next(reads, None)
                stops = read is not None and may_stop and course.spent
                coming = None
                if read is not None and not stops:
                    coming = self._packed(course, read, self._link(request, ask))
                assert frame is not None
                if plain is not frame.plain:
                    plain = frame.plain
                    self._speeds.begin(request.transport)
                await response.write(frame.data)
                self._measured(request, plain=plain)
                sent(frame.raw_bytes, len(frame.data))
                frame = None  # not held while the next one is waited for
                if stops:
                    await response.write(Head(STOP, 0, 0).encode())
            await response.write_eof()
        finally:
            self._speeds.begin(request.transport)
            if coming is not None:  # it reads a file that is about to be closed
                await asyncio.wait({coming})
                coming.cancelled() or coming.exception()  # nobody is left to be told of it

    def _packed(self, course: Course, read: Read, link: Link) -> asyncio.Future[_Frame]:
        return self._in_thread(lambda: self._timed(course, read(), link))

    def _timed(self, course: Course, data: bytes, link: Link) -> _Frame:
        """A frame, and how much longer it took than its processor time: where others are at work, packing is slower."""
        started_s, started_cpu_s = time.monotonic(), time.thread_time()
        frame = _frame(course, data, link)
        now_s, cpu_s = time.monotonic(), time.thread_time() - started_cpu_s
        if cpu_s > _LEAST_CPU_S:
            self._held_up.note(max(1.0, (now_s - started_s) / cpu_s), now_s)
        return frame

    def sent_plain(self, request: web.Request) -> None:
        """A body left as it is: what that tells of the link is remembered."""
        if self._measured(request, plain=True):
            self._speeds.begin(request.transport)

    def _measured(self, request: web.Request, *, plain: bool) -> bool:
        window = self._speeds.window(request.transport)
        return window is not None and self._way(request).saw(window, time.monotonic(), plain=plain)

    def _way(self, request: web.Request) -> Way:
        """What is known of the way to a puller's address."""
        host = request.remote or ""
        way = self._ways.get(host)
        if way is None:
            _remember(self._ways, host, way := Way())
        return way

    def _link(self, request: web.Request, ask: Ask) -> Link:
        now_s = time.monotonic()
        way = self._way(request)
        return Link(
            bytes_per_s=way.bytes_per_s,
            may_be_quicker=way.may_be_quicker(now_s),
            limit_bytes_per_s=ask.limit_bytes_per_s,
            packer_share=min(1.0, PACKERS / max(1, self._answers)) / self._held_up.lately(now_s),
            unpack_bytes_per_s=ask.unpack_bytes_per_s or choice.UNPACK_BYTES_PER_S,
        )

    def _in_thread(self, work: Callable[[], Result]) -> asyncio.Future[Result]:
        return asyncio.get_running_loop().run_in_executor(self._threads, work)


@dataclass(frozen=True, slots=True)
class _Frame:
    raw_bytes: int
    data: bytes
    plain: bool


def _frame(course: Course, data: bytes, link: Link) -> _Frame:
    """One chunk as it is to be sent. An answer's chunks are made one after another: its course needs no lock."""
    if course.wants_trial:
        course.tried(codec.tried(b"".join(data[at : at + SAMPLE_BYTES] for at in _starts(0, len(data)))))
    expected = course.choose(link)
    if expected is not None:
        actual, packed = codec.packed_as(data, expected.planes)
        course.packed(expected, actual)
        if len(packed) < len(data):
            return _Frame(len(data), Head(expected.planes, len(data), len(packed)).encode() + packed, plain=False)
    return _Frame(len(data), Head(RAW, len(data), len(data)).encode() + data, plain=True)


def _sampled(part: Part) -> bytes:
    """A few pieces of a range, or all of a small one; each begins where an element of any size may begin."""
    end = min(part.end, part.offset + REGION_BYTES)
    starts = _starts(part.offset, end)
    return b"".join(os.pread(part.file.fileno(), min(SAMPLE_BYTES, end - start), start) for start in starts)


def _starts(offset: int, end: int) -> range:
    return range(offset, end, max(SAMPLE_BYTES, (end - offset) // SAMPLES) & ~63)


def reads_of(part: Part, chunk_bytes: int) -> Iterator[Read]:
    """Reads of a range's chunks. Each raises OSError; EIO too where the file has become shorter."""

    def reading(offset: int, size: int) -> Read:
        def read() -> bytes:
            data = os.pread(part.file.fileno(), size, offset)
            if len(data) != size:
                raise OSError(f"{len(data)} of {size} bytes were left")
            return data

        return read

    for offset, size in pieces(part.offset, part.end, chunk_bytes):
        yield reading(offset, size)


def _remember(known: OrderedDict[Key, Value], key: Key, value: Value) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > _REMEMBERED:
        with contextlib.suppress(KeyError):
            known.popitem(last=False)
