"""The body of an answer in frames: read within bounds, unpacked, and handed on chunk by chunk.

The body is HTTP's chunked encoding, read here by hand: http.client reads the size of a part with a readline that a peer
could drip for days. This file must not know which chunk a frame ought to be; whoever asks for the next one says how
large it has to become.
"""

from __future__ import annotations

import http.client
import os
import threading
import time

from modelsync.core.compression import frames
from modelsync.core.compression.frames import HEAD_BYTES, RAW, STOP, Head
from modelsync.core.compression.pace import Pace
from modelsync.core.errors import PeerRefused, PeerUnavailable, TimedOut
from modelsync.edges.pull import codec
from modelsync.edges.pull.attempt import Attempt
from modelsync.edges.pull.rate_limit import RateLimiter
from modelsync.ports import Peer, Progress

FRAME_TIMEOUT_S = 60.0
"""As of a chunk that comes as it is: a peer that takes longer for one is given up."""
_MAX_SIZE_LINE = 16
"""``100009`` in hexadecimal and its line end; some servers write leading zeros."""
_unpackers = threading.BoundedSemaphore(max(2, os.cpu_count() or 1))
"""Of all pulls: each holds up to three times a chunk while it unpacks."""


class Framed:
    """One answer's frames, in order. ``finish`` after the last, so that the connection can serve again.

    Args:
        pace: told how many bytes a second are unpacked, verified and written.
    """

    def __init__(self, response: http.client.HTTPResponse, peer: Peer, pace: Pace) -> None:
        self._pace = pace
        self._handed: tuple[int, float] | None = None
        self._response = response
        self._body = response.fp
        self._peer = peer
        self._part_left: int | None = None
        self._ended = False
        self._buffer = bytearray()
        self._give_up_s = 0.0

    def next(
        self, expected_bytes: int | None, progress: Progress, limiter: RateLimiter, attempt: Attempt | None = None
    ) -> memoryview | None:
        """What the next frame becomes, good until the next call; None: the peer stops here.

        Args:
            expected_bytes: how long it has to be; None: at most ``MAX_FRAME_BYTES``.
        Raises:
            codec.Undecodable: what came is not what a frame's head says.
            PeerRefused, PeerUnavailable: these are no frames, or they do not come.
            TimedOut: cancelled. Overtaken: the attempt is not needed any more.
        """
        now_s = time.monotonic()
        if self._handed is not None:  # the caller has verified and written it since
            size, since_s = self._handed
            self._pace.note(size / max(now_s - since_s, 1e-6), now_s)
            self._handed = None
        self._give_up_s = now_s + FRAME_TIMEOUT_S
        self._fill(memoryview(start := bytearray(HEAD_BYTES)), progress)
        try:
            head = frames.decode_head(bytes(start), expected_bytes)
        except ValueError as error:
            raise PeerRefused(peer=self._peer.id, status=self._response.status, reason=str(error)) from error
        progress.add(wire_bytes=HEAD_BYTES, content_bytes=0)
        if head.kind == STOP:
            return None
        limiter.take(HEAD_BYTES + head.wire_bytes, progress.cancelled)
        return self._unpacked(head, self._received(head, progress, attempt))

    def finish(self, progress: Progress) -> None:
        """Read the end of the body. Raises PeerRefused where more follows."""
        self._give_up_s = time.monotonic() + FRAME_TIMEOUT_S
        if self._part_left or (not self._ended and self._next_part(progress)):
            raise PeerRefused(peer=self._peer.id, status=self._response.status, reason="bytes after the last frame")
        self._response.close()

    def _received(self, head: Head, progress: Progress, attempt: Attempt | None) -> memoryview:
        if len(self._buffer) < head.wire_bytes:
            self._buffer = bytearray(head.wire_bytes)
        data = memoryview(self._buffer)[: head.wire_bytes]
        self._fill(data, progress, attempt, head.raw_bytes)
        progress.add(wire_bytes=head.wire_bytes, content_bytes=head.raw_bytes)
        return data

    def _unpacked(self, head: Head, data: memoryview) -> memoryview:
        if head.kind == RAW:
            return data
        self._handed = head.raw_bytes, time.monotonic()
        with _unpackers:
            return memoryview(codec.unpack(data, head.kind, head.raw_bytes))

    def _fill(self, data: memoryview, progress: Progress, attempt: Attempt | None = None, raw_bytes: int = 0) -> None:
        """One recv at a time, as ``read_exactly``; an attempt hears of the part of the chunk that has come."""
        filled = told = 0
        while filled < len(data):
            if not self._part_left and (self._ended or not self._next_part(progress)):
                raise PeerUnavailable(peer=self._peer.id, reason="the body ended early")
            assert self._part_left
            size = self._read(data[filled : filled + self._part_left], progress)
            filled, self._part_left = filled + size, self._part_left - size
            if attempt is not None:
                arrived = raw_bytes * filled // len(data)
                attempt.arrived(arrived - told)
                told = arrived

    def _read(self, data: memoryview, progress: Progress) -> int:
        if progress.cancelled.is_set():
            raise TimedOut(what="pull", reached=f"cancelled at {progress.done_bytes} of {progress.total_bytes} bytes")
        if time.monotonic() > self._give_up_s:
            raise PeerUnavailable(peer=self._peer.id, reason=f"no whole frame in {FRAME_TIMEOUT_S:g} s")
        size = self._body.readinto1(data)
        if not size:
            raise PeerUnavailable(peer=self._peer.id, reason="the body ended early")
        return size

    # --- chunked encoding: RFC 9112, section 7.1 ----------------------------------------------------------------------

    def _next_part(self, progress: Progress) -> int:
        """The size of the next part; 0 at the end."""
        if self._part_left is not None:
            self._line(progress, allowed=0)
        text = self._line(progress, allowed=_MAX_SIZE_LINE)
        try:
            self._part_left = int(text, 16) if text.isalnum() else -1
        except ValueError:
            self._part_left = -1
        if self._part_left < 0:
            raise self._no_parts(text)
        if not self._part_left:
            self._line(progress, allowed=0)  # trailers are not ours to read
            self._ended = True
        return self._part_left

    def _line(self, progress: Progress, allowed: int) -> bytes:
        line, one = b"", bytearray(1)
        while not line.endswith(b"\r\n"):
            if len(line) > allowed + 1:
                raise self._no_parts(line)
            self._read(memoryview(one), progress)
            line += one
        return line[:-2]

    def _no_parts(self, text: bytes) -> PeerRefused:
        reason = f"a body that is not in chunks: {text[:20]!r}"
        return PeerRefused(peer=self._peer.id, status=self._response.status, reason=reason)
