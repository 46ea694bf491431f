"""A file's bytes to a socket by sendfile(2), in a thread of their own beside the event loop.

The event loop's own sendfile was measured against it (decision 16): each time that the socket's buffer is full it goes
back to the loop, which has a lease to renew and others to answer, and a page that is not in memory is read from the
disk in the loop's thread. Here a full buffer is waited for by poll(2), and a slow disk holds up its own body only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

FIRST_BYTES = 1 << 20
"""Sent by the event loop, which empties the transport's buffer for it: up to here no thread is needed at all."""
_PIECE_BYTES = 8 << 20
"""Of one call: it returns when the socket's buffer is full, which is sooner."""
_LOOK_S = 0.25
"""How often it is looked at whether this side has closed the connection meanwhile."""


More = Callable[[int, threading.Event], int]
"""Where the bytes end that can be sent from an offset on, waited for; the offset itself where no more will come, or the
event is set."""


class Sender:
    """Threads that send bodies, one for each that is under way."""

    def __init__(self, bodies: int) -> None:
        self._threads = ThreadPoolExecutor(bodies, "send")

    async def send(
        self,
        transport: asyncio.Transport,
        file: BinaryIO,
        offset: int,
        size_bytes: int,
        *,
        there: int | None = None,
        more: More | None = None,
    ) -> int:
        """Send a range of a file; how many bytes left, fewer where it ends early.

        Args:
            there: where the bytes end that can be sent now, of a file that grows; None: all.
            more: says, in a thread of its own, how far it has grown.
        Raises: OSError, RuntimeError: the connection is gone, or the disk has failed. NotImplementedError: an event
        loop of another make, and nothing was sent.
        """
        end = offset + size_bytes
        first = min(end if there is None else min(there, end), offset + FIRST_BYTES) - offset
        sent = await asyncio.get_running_loop().sendfile(transport, file, offset, first)
        if sent < first or sent == size_bytes:
            return sent
        body = _Body(transport, file, offset + sent, end, more or (lambda at, over: end))
        running = self._threads.submit(body.run)
        ended = asyncio.wrap_future(running)
        ended.add_done_callback(_seen)
        try:
            while not ended.done():
                await asyncio.wait({ended}, timeout=_LOOK_S)
                if transport.is_closing():
                    body.break_off()
            return sent + ended.result()
        finally:
            body.break_off()
            if running.cancel():  # it had not begun
                body.close()


def _seen(ended: asyncio.Future[int]) -> None:
    """Take note of how it ended, which nobody else does where the request was cancelled meanwhile."""
    if not ended.cancelled():
        ended.exception()


class _Body:
    """One range on its way.

    It has the socket and the file under numbers of its own, which only its thread closes: whoever gives a body up, or
    closes the connection, need not wait for the thread.
    """

    def __init__(self, transport: asyncio.Transport, file: BinaryIO, offset: int, end: int, more: More) -> None:
        number = transport.get_extra_info("socket").fileno()
        if number < 0:
            raise ConnectionResetError("the connection is closed")
        self._socket = socket.socket(fileno=os.dup(number))
        self._file = os.dup(file.fileno())
        self._offset, self._end, self._more = offset, end, more
        self._broken = threading.Event()
        self._guard = threading.Lock()
        self._over = False

    def run(self) -> int:
        """Send until the end of the range or of the file; how many bytes left. Raises OSError."""
        try:
            return self._send()
        finally:
            self.close()

    def _send(self) -> int:
        writable = select.poll()
        writable.register(self._socket, select.POLLOUT)
        at = there = self._offset
        while at < self._end:
            if at == there:
                there = min(self._more(at, self._broken), self._end)
            try:
                size = os.sendfile(self._socket.fileno(), self._file, at, min(_PIECE_BYTES, there - at))
            except BlockingIOError:
                writable.poll()  # until there is room, the receiver is gone, or the body is broken off
                continue
            if not size:
                break
            at += size
        return at - self._offset

    def break_off(self) -> None:
        """Have the thread end soon, whatever it waits for; without effect where it has."""
        self._broken.set()
        with self._guard:
            if not self._over:
                with contextlib.suppress(OSError):  # the receiver has closed it already
                    self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self._guard:
            self._over = True
            self._socket.close()
            os.close(self._file)
