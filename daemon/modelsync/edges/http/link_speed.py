"""How fast a connection's bytes arrive, as the kernel measured it: tcp(7), TCP_INFO.

Measured by the sender, since only it knows whether a pause was the link's or its own: bytes acknowledged, over the
time in which there was something to send. The kernel's own delivery rate was tried and left: of a sender that pauses it
keeps the quickest burst, and what a token bucket lets through at once is no measure of the link behind it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass
from weakref import WeakKeyDictionary

_ACKED, _BUSY = 120, 168
_LEAST_BYTES = _BUSY + 8
"""Offsets in struct tcp_info, linux/tcp.h: tcpi_bytes_acked (Linux 4.1), tcpi_busy_time in microseconds (4.9)."""
ENOUGH_BYTES = 512 << 10
"""Acknowledged before a rate is believed: what comes earlier is the window's growth, not the link."""
WINDOW_BYTES = 8 << 20
"""What is older does not count any more."""
LEAST_S = 0.002
"""Half a tick of the clock that the kernel counts busy time by, where it was never seen busy."""


@dataclass(frozen=True, slots=True)
class _Mark:
    acked_bytes: int
    busy_s: float


class LinkSpeeds:
    """Of each open connection, over its latest megabytes."""

    def __init__(self) -> None:
        self._marks: WeakKeyDictionary[asyncio.Transport, tuple[_Mark, _Mark]] = WeakKeyDictionary()

    def bytes_per_s(self, transport: asyncio.Transport | None) -> float | None:
        """The rate of this connection's bytes lately; None where it is not known."""
        now = _mark(transport)
        if transport is None or now is None:
            return None
        older, newer = self._marks.get(transport, (_Mark(0, 0.0), _Mark(0, 0.0)))
        if now.acked_bytes - newer.acked_bytes >= WINDOW_BYTES // 2:
            self._marks[transport] = newer, now
        acked = now.acked_bytes - older.acked_bytes
        return acked / max(now.busy_s - older.busy_s, LEAST_S) if acked >= ENOUGH_BYTES else None


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
    acked, busy_us = struct.unpack_from("=Q", info, _ACKED)[0], struct.unpack_from("=Q", info, _BUSY)[0]
    return _Mark(acked, busy_us / 1e6)
