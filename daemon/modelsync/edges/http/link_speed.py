"""What a connection's bytes did lately, as the kernel counted it: tcp(7), TCP_INFO.

Measured by the sender, since only it knows whether a pause was the link's or its own: bytes acknowledged, and the
time in which there was something to send. The kernel's own delivery rate was tried and left: of a sender that pauses it
keeps the quickest burst, and what a token bucket lets through at once is no measure of the link behind it. What a
window tells of the link, core.compression.way says.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from modelsync.core.compression.way import Window

_ACKED, _BUSY = 120, 168
_LEAST_BYTES = _BUSY + 16
"""Offsets in struct tcp_info, linux/tcp.h: tcpi_bytes_acked (Linux 4.1); tcpi_busy_time and, right after it,
tcpi_rwnd_limited, in microseconds (4.9)."""
WINDOW_BYTES = 8 << 20
"""What is older does not count any more."""


@dataclass(frozen=True, slots=True)
class _Mark:
    acked_bytes: int
    busy_s: float
    held_s: float
    at_s: float


class LinkSpeeds:
    """Of each open connection, over its latest megabytes."""

    def __init__(self) -> None:
        self._marks: WeakKeyDictionary[asyncio.Transport, tuple[_Mark, _Mark]] = WeakKeyDictionary()

    def begin(self, transport: asyncio.Transport | None) -> None:
        """Forget what it did until now: from here on it does something else."""
        now = _mark(transport)
        if transport is not None and now is not None:
            self._marks[transport] = now, now

    def window(self, transport: asyncio.Transport | None) -> Window | None:
        """What a connection did since ``begin``, of that at most the latest megabytes; None where it is not known.

        Without a beginning it is that of the connection.
        """
        now = _mark(transport)
        if transport is None or now is None:
            return None
        older, newer = self._marks.get(transport, (_Mark(0, 0.0, 0.0, now.at_s),) * 2)
        if now.acked_bytes - newer.acked_bytes >= WINDOW_BYTES // 2:
            self._marks[transport] = newer, now
        return Window(
            now.acked_bytes - older.acked_bytes,
            now.busy_s - older.busy_s,
            now.held_s - older.held_s,
            now.at_s - older.at_s,
        )


def _mark(transport: asyncio.Transport | None) -> _Mark | None:
    connected = None if transport is None else transport.get_extra_info("socket")
    if connected is None:
        return None
    try:
        info = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    except OSError:  # closed meanwhile, or no TCP
        return None
    if len(info) < _LEAST_BYTES:  # an old kernel
        return None
    acked = struct.unpack_from("=Q", info, _ACKED)[0]
    busy_us, held_us = struct.unpack_from("=QQ", info, _BUSY)
    return _Mark(acked, busy_us / 1e6, held_us / 1e6, time.monotonic())
