"""One request among several for one object: how far it is, and how another thread ends it.

A request that others have overtaken may be waiting for a byte that never comes. Shutting its socket down wakes it at
once; and nobody closes the file while a request may still write to it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


class Overtaken(Exception):
    """This request is not needed any more: nobody's fault, and never seen outside of a pull."""


class Attempt:
    """Shared by the thread of one request and the one that ordered it."""

    def __init__(self) -> None:
        self.arrived_bytes = 0
        self.delivered: list[int] = []
        """Chunks in the order in which they were verified; only grows."""
        self.seen = 0
        """How many of them the other thread has looked at; only it touches this."""
        self._over = threading.Event()
        self._using = threading.Lock()
        self._guard = threading.Lock()
        self._socket: socket.socket | None = None

    def arrived(self, size_bytes: int) -> None:
        """Bytes have come. Raises Overtaken."""
        self.arrived_bytes += size_bytes
        self.require_wanted()

    def require_wanted(self) -> None:
        if self._over.is_set():
            raise Overtaken

    @property
    def over(self) -> bool:
        return self._over.is_set()

    @contextlib.contextmanager
    def receiving(self) -> Iterator[None]:
        """While this lasts, bytes may be written. Raises Overtaken where they are not to be any more."""
        with self._using:
            self.require_wanted()
            yield

    def uses(self, connected: socket.socket | None) -> None:
        """This socket is read by the attempt from now on; None: by nobody, and it may serve another request."""
        with self._guard:
            self._socket = connected

    def end(self) -> None:
        """Break the request off, from another thread."""
        self._over.set()
        with self._guard, contextlib.suppress(OSError):  # it has just ended by itself
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)

    def wait_unused(self) -> None:
        """Return when nothing is written any more."""
        with self._using:
            pass
